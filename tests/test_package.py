"""The package as a whole: public names, import order, and what importing costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import ance_fast

ROOT = Path(__file__).resolve().parent.parent


def test_every_public_name_exists_and_is_documented() -> None:
    for name in ance_fast.__all__:
        assert getattr(ance_fast, name).__doc__, name


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, ance_fast, ance_fast.data; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_info_names_a_backend_and_a_reason_for_every_op() -> None:
    facts = ance_fast.info()
    assert facts["extension"]["isa"] in ("avx512", "avx2", "scalar")
    assert facts["faiss"]["kind"] == "faiss-cpu"
    for op in ("pool_normalize", "contrastive_loss", "pairwise_loss", "topk_inner_product"):
        backend, why = facts["ops"][op]["cpu"]
        assert backend != "none", op
        assert why, op
    assert facts["ops"]["pool_normalize"]["cpu"][0] == "cpp"


def test_a_skip_outside_the_allow_list_fails_the_run(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "allowed_skips.txt").write_text("no GPU\n")
    test = "import pytest\ndef test_a():\n    pytest.skip({reason!r})\n"
    for reason, status in (("no GPU here", 0), ("did not feel like it", 1)):
        (tmp_path / "test_it.py").write_text(test.format(reason=reason))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        assert subprocess.run(command, capture_output=True, cwd=tmp_path, check=False).returncode == status, reason


def test_the_version_is_the_same_in_the_package_and_its_metadata() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == ance_fast.__version__
