"""The public ops on CUDA tensors: accuracy in every dtype, launches, no waiting, memory, determinism, compilation."""

from __future__ import annotations

import pytest
import torch
from op_cases import NAMES, case, value_and_gradients

from ance_fast.ops import contrastive_chunks, contrastive_loss
from ance_fast.ops.contrastive_chunks import Tiling
from ance_fast.ops.dispatch import dispatch_counts, reset_dispatch_counts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def backends(name):
    return ["triton", "cuda", "torch"] if "+" in name else ["triton", "torch"]


def on_gpu(name, rows, dim, dtype):
    function, leaves = case(name, rows, dim)
    return function, [leaf.to("cuda", dtype) for leaf in leaves]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "dim"), [(1000, 768), (127, 1024), (1, 384), (65, 33), (63, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_errs_no_more_than_eager_torch(name, rows, dim, dtype):
    function, narrow = on_gpu(name, rows, dim, dtype)
    exact = value_and_gradients(function, [leaf.double() for leaf in narrow], backend="reference")
    eager = value_and_gradients(function, narrow, backend="reference")
    for backend in backends(name):
        found = value_and_gradients(function, narrow, backend=backend)
        for mine, theirs, wanted in zip(found, eager, exact, strict=True):
            allowed = (theirs.double() - wanted).abs().max() + 2 * torch.finfo(mine.dtype).eps * wanted.abs().max()
            assert (mine.double() - wanted).abs().max() <= allowed + 4e-6 * wanted.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_column_tiles_give_what_whole_rows_give(dtype, monkeypatch):
    function, leaves = on_gpu("contrastive", 200, 64, dtype)
    whole = value_and_gradients(function, leaves, backend="triton")
    monkeypatch.setattr(contrastive_chunks, "default_tiling", lambda *_: Tiling(70, 90))
    for mine, theirs in zip(value_and_gradients(function, leaves, backend="triton"), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=20 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_chosen_without_asking(name):
    function, leaves = on_gpu(name, 16, 64, torch.bfloat16)
    reset_dispatch_counts()
    function(leaves)
    assert all(key.endswith(("/triton", "/cuda")) for key in dispatch_counts())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name):
    function, leaves = on_gpu(name, 16, 64, torch.bfloat16)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    function(leaves).backward()  # compiles, which may wait
    torch.cuda.synchronize()
    q, p, *_ = [leaf.detach().requires_grad_() for leaf in [*leaves, *leaves]]
    try:
        torch.cuda.set_sync_debug_mode("error")
        if name in ("contrastive", "bidirectional"):
            documents = torch.arange(p.shape[0], device="cuda") // 2
            contrastive_loss(q, p, doc_ids=documents, bidirectional=name == "bidirectional", scale=20.0).backward()
        elif name == "pairwise":
            function(leaves).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_chunk_is_four_launches():
    q, p = (torch.randn(n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (96, 128))

    def launches(chunk_rows):
        contrastive_loss(q, p, chunk_rows=chunk_rows).backward()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            contrastive_loss(q, p, chunk_rows=chunk_rows).backward()
            torch.cuda.synchronize()
        return sum(event.count for event in profile.key_averages() if "Memcpy" not in event.key)

    # cuBLAS may split a product of so few rows in two launches.
    assert launches(32) - launches(96) <= 2 * (4 + 3)


def test_memory_stays_within_a_fifth_of_the_formula():
    rows, columns, dim, chunk = 8192, 16384, 768, 1024
    q, p = (torch.randn(n, dim, device="cuda", requires_grad=True) for n in (rows, columns))
    contrastive_loss(q[:1024], p[:2048], chunk_rows=256).backward()
    q.grad = p.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contrastive_loss(q, p, chunk_rows=chunk).backward()
    used = torch.cuda.max_memory_allocated() - before
    assert used <= 1.2 * (chunk * columns * 4 + (rows + columns) * dim * 4)


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_bitwise_equal(name):
    function, leaves = on_gpu(name, 300, 96, torch.bfloat16)
    for one, two in zip(value_and_gradients(function, leaves), value_and_gradients(function, leaves), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["contrastive", "pairwise", "mean+l2"])
def test_inductor_compiles_it_into_one_graph(name):
    function, leaves = on_gpu(name, 32, 64, torch.float32)
    compiled = torch.compile(lambda *leaves: function(list(leaves)), fullgraph=True)
    for mine, theirs in zip(
        value_and_gradients(lambda leaves: compiled(*leaves), leaves),
        value_and_gradients(function, leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
