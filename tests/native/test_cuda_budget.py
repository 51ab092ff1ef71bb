"""What the compiler makes of every kernel in csrc/cuda: no spills, and no more registers than cuda_budget.json allows.

Compiles only; runs without a GPU. A failure prints the measured numbers in the form of that file.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
BUDGET: dict[str, dict[str, dict[str, int]]] = json.loads(Path(__file__).with_name("cuda_budget.json").read_text())
STATIC_SHARED_LIMIT = 48 * 1024

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_90a'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Kernel(NamedTuple):
    registers: int
    spilled: int  # bytes; a stack frame counts as well
    shared: int  # bytes of static shared memory


def measure(log: str) -> dict[str, Kernel]:
    """The kernels in what ptxas -v printed, by their demangled name without namespace and arguments."""
    found = {}
    for entry in ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        spilled = sum(int(entry[part]) for part in ("stack", "stores", "loads"))
        found[entry["name"]] = Kernel(int(entry["registers"]), spilled, int(shared[1]) if shared else 0)
    names = subprocess.run(["c++filt", "-p", *found], capture_output=True, text=True, check=True) if found else None
    return dict(zip([short(name) for name in names.stdout.splitlines()], found.values(), strict=True)) if names else {}


def short(name: str) -> str:
    """`void a::b::f<x::T, 4>` -> `f<T, 4>`."""
    return re.sub(r"(\w+|\(anonymous namespace\))::", "", name.removeprefix("void "))


@pytest.mark.parametrize("source", FILES, ids=lambda path: path.name)
def test_no_kernel_spills_or_outgrows_its_budget(source, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    command = ["nvcc", "-std=c++17", f"-I{ROOT / 'csrc'}", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v"]
    command += ["-cubin", "-o", str(tmp_path / "kernels.cubin"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels, budget = measure(result.stderr), BUDGET.get(source.name, {})
    assert len(kernels) == result.stderr.count("Compiling entry function")
    measured = json.dumps({name: {"registers": k.registers, "shared": k.shared} for name, k in sorted(kernels.items())})
    assert kernels.keys() == budget.keys(), f"write the budget of {source.name}: {measured}"
    for name, kernel in kernels.items():
        assert kernel.spilled == 0, f"{name} spills {kernel.spilled} bytes"
        assert kernel.registers <= budget[name]["registers"], f"{name}: {measured}"
        assert kernel.shared <= min(budget[name]["shared"], STATIC_SHARED_LIMIT), f"{name}: {measured}"


def test_the_budget_names_no_file_that_is_gone():
    assert BUDGET.keys() <= {path.name for path in FILES}


def test_the_log_of_the_compiler_is_understood():
    log = """ptxas info    : Compiling entry function '_ZN1a1fILi4EEEvPi' for 'sm_90a'
ptxas info    : Function properties for _ZN1a1fILi4EEEvPi
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 2.5 ms
"""
    if shutil.which("c++filt") is None:
        pytest.skip("no nvcc: it needs the binutils")
    assert measure(log) == {"f<4>": Kernel(255, 24, 1024)}
