"""What every test shares, and the rule that a skip outside `allowed_skips.txt` fails the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = Path(__file__).with_name("allowed_skips.txt")
DATA = Path(os.environ.get("ANCE_FAST_DATA", ROOT.parent / "shared" / "data"))

# Nothing here may ask a hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ANCE_FAST_STRICT", "1")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("scifact")`: the folder of a real retrieval set; skips where there is none."""

    def find(name: str) -> Path:
        folder = DATA / name
        if not folder.is_dir():
            pytest.skip("no shared data")
        return folder

    return find


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2 checkpoint from the package that carries it."""
    from ance_fast.cli.demo.data import model_folder

    return model_folder()


_unexpected: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    allowed = [line.strip() for line in ALLOWED.read_text(encoding="utf-8").splitlines()]
    if not any(line and not line.startswith("#") and line in reason for line in allowed):
        _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _unexpected.append(f"{report.nodeid}: skipped while collecting")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected:
        terminalreporter.section("skips that tests/allowed_skips.txt does not allow", red=True)
        for line in _unexpected:
            terminalreporter.write_line(line)
