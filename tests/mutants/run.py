"""Break the kernels on purpose, one patch at a time, and require that the tests notice.

    python tests/mutants/run.py [NAME ...]

Works on a copy of the tree. A patch says above its diff what it breaks and, after "tests:", which test files must catch
it; a C++ change is rebuilt. Exits 1 if a mutant survives, does not apply, or breaks the tests in another way than by a
failure. A mutant whose tests are all skipped here, for want of nvcc for example, is named and does not count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
SKIPPED = "not tried: its tests are skipped here"
COPIED = ("ance_fast", "benchmarks", "csrc", "tests", "CMakeLists.txt", "pyproject.toml", "setup.py")


@dataclass(frozen=True)
class Mutant:
    """A patch, the test files that must fail with it, and whether it needs a build."""

    path: Path
    tests: list[str]
    compiled: bool


def read(path: Path) -> Mutant:
    text = path.read_text(encoding="utf-8")
    tests = [line.removeprefix("tests:").split() for line in text.splitlines() if line.startswith("tests:")]
    if len(tests) != 1:
        raise SystemExit(f"{path}: one line must begin with 'tests:'")
    changed = [line.removeprefix("+++ b/") for line in text.splitlines() if line.startswith("+++ b/")]
    return Mutant(path, tests[0], any(name.startswith("csrc/") and "/cuda/" not in name for name in changed))


def main() -> None:
    wanted = sys.argv[1:]
    mutants = [read(path) for path in sorted(FOLDER.glob("*.patch")) if not wanted or path.stem in wanted]
    if not mutants:
        raise SystemExit(f"no such mutant in {FOLDER}: {' '.join(wanted)}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copy / name)
        code, _ = run_tests(copy, sorted({name for mutant in mutants for name in mutant.tests}))
        if code:
            raise SystemExit(f"pytest ends with {code} before anything is broken; run it to see why")
        fates = [fate(mutant, copy) for mutant in mutants]
    print(f"{fates.count('caught')} of {len(mutants)} mutants caught, {fates.count(SKIPPED)} not tried")
    raise SystemExit(any(outcome not in ("caught", SKIPPED) for outcome in fates))


def fate(mutant: Mutant, copy: Path) -> str:
    """What became of a mutant: "caught", "survived", or what went wrong."""
    apply = ["patch", "-p1", "--quiet", "--input", str(mutant.path)]
    outcome = "does not apply"
    if subprocess.run([*apply, "--dry-run"], cwd=copy).returncode == 0:
        subprocess.run(apply, cwd=copy, check=True)
        try:
            outcome = outcome_of(mutant, copy)
        finally:
            subprocess.run([*apply, "--reverse"], cwd=copy, check=True)
            if mutant.compiled and not build(copy):
                raise SystemExit(f"{mutant.path.stem}: the tree does not build any more without it")
    print(f"{mutant.path.stem}: {outcome}", flush=True)
    return outcome


def outcome_of(mutant: Mutant, copy: Path) -> str:
    if mutant.compiled and not build(copy):
        return "does not compile"
    code, ran = run_tests(copy, mutant.tests)
    if not ran:
        return SKIPPED
    return {0: "survived", 1: "caught"}.get(code, f"pytest ended with {code}")


def run_tests(copy: Path, names: list[str]) -> tuple[int, bool]:
    """Exit status of pytest on the copy, and whether any test ran rather than being skipped."""
    arguments = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *names]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    try:
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:  # a deadlock is noticed too
        return 1, True
    summary = result.stdout.strip().rpartition("\n")[2]
    return result.returncode, result.returncode != 0 or " passed" in summary


def build(copy: Path) -> bool:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    main()
