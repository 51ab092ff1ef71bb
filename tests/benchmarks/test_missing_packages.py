"""Where a package is missing, tests that need it are named and the others run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_FAISS = "import sys; sys.modules['faiss'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def outcome(folder: Path, **files: str) -> tuple[int, list[str]]:
    """Exit status and the lines of a run of these test files, with FAISS missing."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", WITHOUT_FAISS, "-q", "-p", "no:cacheprovider", "-p", "benchmarks.missing_packages"]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_a_file_and_a_test_that_need_the_package_are_named_and_the_rest_runs(tmp_path):
    inside = """
from ance_fast.index.faiss_library import import_faiss
def test_the_error_of_this_package():
    import_faiss("HNSW16")
def test_the_import_itself():
    import faiss
def test_a_process_that_needs_it():
    import subprocess, sys
    code = "raise ModuleNotFoundError(\\"No module named 'faiss'\\")"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
def test_needs_nothing():
    pass
"""
    status, lines = outcome(tmp_path, test_top="import faiss\ndef test_a(): pass\n", test_inside=inside)
    assert status == 0, lines
    assert "not run: 3 tests, no package faiss" in lines
    assert f"not run: {tmp_path / 'test_top.py'}, no package faiss" in lines
    assert any(line.startswith("1 passed, 3 xfailed") for line in lines)


def test_other_failures_stay_failures(tmp_path):
    status, lines = outcome(
        tmp_path,
        test_it="""
def test_wrong_name():
    from ance_fast import no_such_name
def test_wrong():
    assert "faiss" == "another"
def test_unknown_package():
    import no_such_package
""",
    )
    assert status == 1
    assert any(line.startswith("3 failed") for line in lines)
