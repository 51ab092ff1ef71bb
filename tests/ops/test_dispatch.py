"""Which backend runs, why, and how strict mode treats a missing one."""

from __future__ import annotations

import dataclasses
import logging
import os

import pytest
import torch

from ance_fast.errors import ConfigError
from ance_fast.ops import dispatch
from ance_fast.ops.pool_normalize import pool_normalize


@pytest.fixture
def no_extension(monkeypatch):
    """The extension does not import."""
    broken = dispatch.Backend(
        "cpp", dispatch._cpp_reason, frozenset({"cpu"}), frozenset({torch.float32}), lambda: "it was not built"
    )
    table = dispatch.BACKENDS | {"pool_normalize": (broken, *dispatch.BACKENDS["pool_normalize"][1:])}
    monkeypatch.setattr(dispatch, "BACKENDS", table)
    dispatch._warn_once.cache_clear()


def test_describe_names_a_backend_and_a_reason_for_every_op_and_device():
    report = dispatch.describe()
    assert set(report) == set(dispatch.BACKENDS)
    for devices in report.values():
        assert set(devices) == {"cpu", "cuda"}
        assert devices["cpu"].backend in ("cpp", "torch")
    unbuilt = {op for op, devices in report.items() if "no GPU kernel takes it" in devices["cuda"].reason}
    assert unbuilt == {"packed_self_attention"}
    assert dispatch.choose("packed_self_attention", "cuda", torch.bfloat16).backend == "varlen"
    assert report["pool_normalize"]["cpu"].backend == "cpp"


def test_an_op_without_a_gpu_kernel_is_not_a_fallback(monkeypatch):
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    assert dispatch.choose("packed_self_attention", "cuda", torch.float32).backend == "torch"


def test_a_gpu_with_an_extension_built_without_cuda_uses_triton_and_says_so(monkeypatch):
    monkeypatch.delenv("ANCE_FAST_STRICT", raising=False)
    table = [
        dataclasses.replace(backend, missing=lambda: "the extension was built without CUDA")
        if backend.name == "cuda"
        else backend
        for backend in dispatch.BACKENDS["pool_normalize"]
    ]
    monkeypatch.setattr(dispatch, "BACKENDS", dispatch.BACKENDS | {"pool_normalize": tuple(table)})
    choice = dispatch.choose("pool_normalize", "cuda", torch.bfloat16)
    assert choice.backend == "triton"
    assert "the extension was built without CUDA" in choice.reason


def test_interpreted_kernels_run_on_the_cpu_only_when_asked_for():
    for op in ("pool_normalize", "contrastive_loss", "pairwise_loss"):
        assert dispatch.choose(op, "cpu", torch.float32).backend != "triton"
        if os.environ.get("TRITON_INTERPRET") == "1":
            assert dispatch.choose(op, "cpu", torch.float32, "triton").backend == "triton"


def test_float64_goes_to_torch_even_in_strict_mode(monkeypatch):
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    assert dispatch.choose("pool_normalize", "cpu", torch.float64).backend == "torch"


def test_a_missing_extension_falls_back_with_one_warning(no_extension, monkeypatch, caplog):
    monkeypatch.delenv("ANCE_FAST_STRICT", raising=False)
    with caplog.at_level(logging.WARNING, logger="ance_fast.ops.dispatch"):
        for _ in range(3):
            choice = dispatch.choose("pool_normalize", "cpu", torch.float32)
    assert choice == ("torch", "fallback: it was not built; plain torch")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "it was not built" in caplog.text


def test_strict_mode_turns_the_fallback_into_an_error(no_extension, monkeypatch):
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    with pytest.raises(ConfigError, match="ANCE_FAST_STRICT=1: it was not built"):
        dispatch.choose("pool_normalize", "cpu", torch.float32)
    assert dispatch.describe()["pool_normalize"]["cpu"].backend == "none"


def test_a_forced_backend_that_cannot_run_says_why(no_extension):
    with pytest.raises(ConfigError, match="backend 'cpp' is not available: it was not built"):
        dispatch.choose("pool_normalize", "cpu", torch.float32, "cpp")


def test_a_forced_backend_of_another_device_or_dtype_says_so():
    with pytest.raises(ConfigError, match="it does not run on cuda"):
        dispatch.choose("pool_normalize", "cuda", torch.float32, "cpp")
    if os.environ.get("TRITON_INTERPRET") == "1":
        with pytest.raises(ConfigError, match=r"it does not take torch\.float64"):
            dispatch.choose("pool_normalize", "cpu", torch.float64, "triton")
    with pytest.raises(ConfigError, match=r"it does not take torch\.float64"):
        dispatch.choose("pool_normalize", "cpu", torch.float64, "cpp")


def test_a_row_too_wide_for_a_kernel_goes_to_the_next_that_takes_it(monkeypatch):
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    backends = [dataclasses.replace(backend, missing=lambda: None) for backend in dispatch.BACKENDS["pool_normalize"]]
    monkeypatch.setattr(dispatch, "BACKENDS", dispatch.BACKENDS | {"pool_normalize": tuple(backends)})
    for width, backend in ((0, "cuda"), (8192, "cuda"), (8193, "triton"), (16384, "triton"), (16385, "torch")):
        assert dispatch.choose("pool_normalize", "cuda", torch.float16, width=width).backend == backend
    assert dispatch.choose("pool_normalize", "cpu", torch.float32, width=16385).backend == "cpp"
    with pytest.raises(ConfigError, match="backend 'cuda' is not available: it takes rows of at most 8192 columns"):
        dispatch.choose("pool_normalize", "cuda", torch.float16, "cuda", 8193)


def test_the_widest_rows_are_those_that_the_kernels_take():
    from ance_fast import _C
    from ance_fast.ops.pool_normalize_triton import TILE

    widest = {backend.name: backend.widest for backend in dispatch.BACKENDS["pool_normalize"]}
    assert widest["triton"] == TILE
    assert widest["cuda"] == getattr(_C, "pool_max_dim_cuda", 8192)  # not there in an extension built without CUDA


def test_every_call_is_counted_under_the_backend_that_ran():
    before = dispatch.dispatch_counts()
    hidden, cu = torch.ones(2, 2), torch.tensor([0, 2], dtype=torch.int32)
    pool_normalize(hidden, cu)
    pool_normalize(hidden, cu)
    pool_normalize(hidden, cu, backend="reference")
    after = dispatch.dispatch_counts()
    grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert grown == {"pool_normalize/cpu/cpp": 2, "pool_normalize/cpu/reference": 1}


def test_the_counts_can_be_reset(monkeypatch):
    monkeypatch.setattr(dispatch, "_COUNTS", dispatch._COUNTS.copy())
    pool_normalize(torch.ones(2, 2), torch.tensor([0, 2], dtype=torch.int32))
    assert dispatch.dispatch_counts()
    dispatch.reset_dispatch_counts()
    assert dispatch.dispatch_counts() == {}
