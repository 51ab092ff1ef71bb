"""How the CMake build treats ANCE_FAST_CUDA. Configures only; nothing is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]


def configure(folder: Path, cuda: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(folder), f"-DANCE_FAST_CUDA={cuda}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_another_value_is_a_clear_error(tmp_path):
    result = configure(tmp_path, "maybe")
    assert result.returncode != 0
    assert "ANCE_FAST_CUDA is 'maybe'; it must be auto, on or off" in " ".join(result.stderr.split())


def test_on_without_a_cuda_compiler_is_a_clear_error(tmp_path):
    result = configure(tmp_path, "on", CUDACXX=str(tmp_path / "no-nvcc"))
    assert result.returncode != 0
    assert "ANCE_FAST_CUDA=on, but CMake found no CUDA compiler" in " ".join(result.stderr.split())


@pytest.mark.parametrize(("cuda", "environment"), [("off", {}), ("auto", {"CUDACXX": "no-nvcc"})])
def test_off_and_auto_configure_without_a_cuda_compiler(tmp_path, cuda, environment):
    result = configure(tmp_path, cuda, **environment)
    assert result.returncode == 0, result.stderr
    assert f"CUDA part OFF (ANCE_FAST_CUDA={cuda})" in result.stdout
