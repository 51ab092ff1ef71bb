"""What every test shares, and the rule that a skip outside `allowed_skips.txt` fails the run."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = Path(__file__).with_name("allowed_skips.txt")
DATA = Path(os.environ.get("ANCE_FAST_DATA", ROOT.parent / "shared" / "data"))

# Nothing here may ask a hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ANCE_FAST_STRICT", "1")
# Without a GPU, Triton kernels run in Triton's interpreter, which must be known before Triton is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples in every run; `--hypothesis-profile default` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """A command that a test runs in this process sets how much is logged, for every test after it."""
    logger = logging.getLogger("ance_fast")
    level = logger.level
    yield
    logger.setLevel(level)


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Callable[..., Path]:
    """`tiny("Roberta", hidden_act="gelu")`: a Hugging Face folder of that architecture with small random weights."""

    def make(architecture: str, **overrides: object) -> Path:
        import torch
        import transformers

        settings: dict[str, object] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 80,
            "vocab_size": 30522,
            "pad_token_id": 0,
        }
        if architecture == "DistilBert":
            settings |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        if architecture == "Electra":
            settings |= {"embedding_size": 16}
        if architecture == "ModernBert":
            settings |= {"local_attention": 8, "global_attn_every_n_layers": 2, "max_position_embeddings": 128}
            settings |= {"cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102}
        settings |= overrides
        torch.manual_seed(0)
        config = getattr(transformers, f"{architecture}Config")(**settings)
        model = getattr(transformers, f"{architecture}Model")(config).eval()
        folder = tmp_path_factory.mktemp(architecture.lower())
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`small_bert(seed, num_hidden_layers=1)`: a BERT folder like `tiny`'s with a WordPiece vocabulary of 300 tokens of
    its own, which loads in no time."""

    def make(seed: int = 0, **overrides: object) -> Path:
        import torch
        import transformers

        folder = tmp_path_factory.mktemp("bert")
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
        pieces = [f"##{letter}" for letter in letters if letter.isalnum()]
        words = sorted(set(re.findall("[a-z]{3,}", Path(__file__).read_text(encoding="utf-8"))))
        vocabulary = [*special, *letters, *pieces, *words][:300]
        (folder / "vocab.txt").write_text("".join(word + "\n" for word in vocabulary), encoding="utf-8")
        transformers.BertTokenizerFast(
            vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=80
        ).save_pretrained(folder)
        settings: dict[str, object] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 80,
            "vocab_size": 300,
        }
        torch.manual_seed(seed)
        transformers.BertModel(transformers.BertConfig(**(settings | overrides))).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 400 real encyclopaedia openings with splits train, dev and test."""
    from ance_fast.cli.demo.data import write_data

    folder = tmp_path_factory.mktemp("wiki") / "data"
    write_data(folder, limit=400)
    return folder


@pytest.fixture(scope="session")
def warm() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`warm("-m", module, ..., stdin=...)`: `python -m module ...` without the seconds that its imports take."""
    sys.path.append(str(ROOT / "tests"))
    from warm_process import WarmProcess

    process = WarmProcess()
    yield process.run
    process.close()


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


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    # With pytest-xdist only the process that collected knows of modules that skipped themselves meanwhile.
    _unexpected.extend(getattr(node, "workeroutput", {}).get("unexpected", []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["unexpected"] = [line for line in _unexpected if "while collecting" in line]
        return
    if _unexpected and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected:
        terminalreporter.section("skips that tests/allowed_skips.txt does not allow", red=True)
        for line in _unexpected:
            terminalreporter.write_line(line)
