"""Builds the compiled part of the package with CMake; everything else is in pyproject.toml.

Environment: ANCE_FAST_CUDA=auto|on|off (default auto), CMAKE_ARGS (appended to the configure command),
CMAKE_CUDA_ARCHITECTURES (default 90).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_program(name: str) -> str | None:
    """The program of the Python package `name` (what pyproject.toml requires), else the one on PATH."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        for folder in (Path(spec.origin).parent / "data" / "bin", Path(sys.executable).parent):
            found = shutil.which(name, path=str(folder))
            if found:
                return found
    return shutil.which(name)


class CMakeBuild(build_ext):
    """`build_ext` that hands the extension to CMake and copies the module to where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cmake = find_program("cmake")
        if cmake is None:
            raise RuntimeError(
                "CMake >= 3.24 was not found: install it with `pip install cmake` or the system's package"
            )
        ninja = find_program("ninja")
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        configure = [
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DANCE_FAST_CUDA={os.environ.get('ANCE_FAST_CUDA', 'auto')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *(["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        ]
        if "CMAKE_CUDA_ARCHITECTURES" in os.environ:
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={os.environ['CMAKE_CUDA_ARCHITECTURES']}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        # An isolated pip build brings its own cmake and pybind11 at a new path each time; a cache that
        # remembers the old ones cannot be reused.
        stamp, wanted = build / "configured.json", json.dumps([cmake, *configure, sys.version])
        if build.exists() and not (stamp.exists() and stamp.read_text() == wanted):
            shutil.rmtree(build)
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *configure], check=True)
        stamp.write_text(wanted)
        jobs = str(self.parallel or os.cpu_count() or 1)
        subprocess.run([cmake, "--build", str(build), "--config", "Release", "--parallel", jobs], check=True)
        (built,) = build.glob("_C*.so")
        output.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old module mapped keeps its own copy of the file.
        staging = output.with_name(f".{output.name}.tmp")
        shutil.copy2(built, staging)
        os.replace(staging, output)


def files(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").rglob(pattern))


setup(
    ext_modules=[
        Extension(
            "ance_fast._C",
            sources=files("*.cpp"),
            depends=["CMakeLists.txt", *files("*.h", "*.inl", "*.cu", "*.cuh")],
        )
    ],
    cmdclass={"build_ext": CMakeBuild},
)
