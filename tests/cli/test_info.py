"""What `ance-fast info` says about the compiled extension."""

from __future__ import annotations

from typing import Any

import pytest

from ance_fast.cli.commands.info import _extension

CUDA = {"isa": "avx2", "cpu_features": ["avx2", "fma"], "cuda": True, "cuda_runtime_version": 13010}


@pytest.mark.parametrize(
    ("facts", "here"),
    [
        (
            {"cuda_driver_version": 0, "cuda_device_count": 0, "cuda_error": "CUDA driver version is insufficient"},
            "not usable here: no NVIDIA driver",
        ),
        (
            {"cuda_driver_version": 12080, "cuda_device_count": 0, "cuda_error": "CUDA driver version is insufficient"},
            "not usable here: CUDA driver version is insufficient (driver for CUDA 12.8)",
        ),
        (
            {"cuda_driver_version": 13000, "cuda_device_count": 0, "cuda_error": ""},
            "not usable here: no GPU is visible (driver for CUDA 13.0)",
        ),
        (
            {"cuda_driver_version": 13000, "cuda_device_count": 2, "cuda_error": ""},
            "usable on 2 GPUs (driver for CUDA 13.0)",
        ),
    ],
)
def test_what_it_was_built_with_and_what_is_usable_here_are_two_things(facts: dict[str, Any], here: str) -> None:
    rows = dict(_extension({**CUDA, **facts}))
    assert rows == {"isa": "avx2", "cpu_features": "avx2, fma", "cuda": "built with CUDA 13.1", "cuda here": here}


def test_an_extension_without_cuda_or_that_does_not_import_says_so() -> None:
    assert dict(_extension({"isa": "avx2", "cuda": False})) == {"isa": "avx2", "cuda": "built without CUDA"}
    assert _extension({"problem": "it does not import"}) == [("problem", "it does not import")]
