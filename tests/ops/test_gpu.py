"""The public ops on CUDA tensors: accuracy in every dtype, launches, no waiting, memory, determinism, compilation."""

from __future__ import annotations

import pytest
import torch
from op_cases import NAMES, case, value_and_gradients

from ance_fast.ops import contrastive_chunks, contrastive_loss, encoder_layer, pairwise_loss, pool_normalize
from ance_fast.ops.contrastive_chunks import Tiling
from ance_fast.ops.dispatch import choose, dispatch_counts, reset_dispatch_counts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def backends(name):
    if "+" not in name:
        return ["triton", "torch"]
    built = choose("pool_normalize", "cuda", torch.float32).backend == "cuda"
    return [*(["cuda"] if built else []), "triton", "torch"]


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
            # Results are rounded to the dtype once; a value sums many of them. D = 1 makes true gradients 0.
            rounding = 2 * torch.finfo(dtype).eps * wanted.abs().max() + 4e-6 * (1 + wanted.abs().max())
            assert (mine.double() - wanted).abs().max() <= (theirs.double() - wanted).abs().max() + rounding


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


@pytest.mark.parametrize("name", ["one direction", "bidirectional", "pairwise", "pool"])
def test_nothing_waits_for_the_device(name):
    q, p, hidden = (torch.randn(n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (16, 33, 40))
    documents, cu_seqlens = torch.arange(33, device="cuda") // 2, torch.tensor([0, 9, 9, 40], device="cuda").int()

    def step():
        if name == "pairwise":
            return pairwise_loss(q, p[:16], p[17:].reshape(16, 1, 64), scale=20.0)
        if name == "pool":
            return pool_normalize(hidden, cu_seqlens).sum()
        return contrastive_loss(q, p, doc_ids=documents, bidirectional=name == "bidirectional", scale=20.0)

    step().backward()  # compiles, which may wait
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_chunk_is_four_launches():
    q, p = (torch.randn(n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (768, 1024))

    def launches(chunk_rows):
        contrastive_loss(q, p, chunk_rows=chunk_rows).backward()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            contrastive_loss(q, p, chunk_rows=chunk_rows).backward()
            torch.cuda.synchronize()
        events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        # cuBLAS adds up the parts of a product that it splits in a launch of its own.
        return sum("Memcpy" not in event.name and "splitK" not in event.name for event in events)

    assert launches(256) - launches(768) <= 2 * 4


def test_a_captured_pairwise_loss_can_be_replayed():
    q, pos, neg = (torch.randn(*shape, device="cuda") for shape in ((9, 64), (9, 64), (9, 2, 64)))
    wanted = pairwise_loss(q, pos, neg)
    graphs, losses = [torch.cuda.CUDAGraph() for _ in range(2)], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            losses.append(pairwise_loss(q, pos, neg))
    for at in (1, 0, 0, 1):
        losses[at].zero_()
        graphs[at].replay()
        assert torch.equal(losses[at], wanted)


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


def layer_case(name, tokens, dim, dtype):
    """An op of the encoder layer as a function of its tensors, its reference, and the tensors."""
    draw = torch.Generator().manual_seed(dim)

    def values(*shape):
        return torch.randn(*shape, generator=draw).to("cuda", dtype)

    if name == "gelu":
        op, reference = encoder_layer.bias_gelu_, encoder_layer.bias_gelu_reference
        return op, reference, [values(tokens, dim), values(dim)]
    rows = [values(dim) for _ in range(3)]
    if name == "layernorm":
        tensors = [values(tokens, dim), rows[0], values(tokens, dim), *rows[1:]]
        op, reference = encoder_layer.bias_residual_layernorm_, encoder_layer.bias_residual_layernorm_reference
        return (lambda *x: op(*x, 1e-5)), (lambda *x: reference(*x, 1e-5)), tensors
    ids = torch.randint(0, 64, (2, tokens), generator=draw).to("cuda")
    op, reference = encoder_layer.embed_layernorm, encoder_layer.embed_layernorm_reference
    tensors = [values(64, dim), values(64, dim), *rows]
    return (lambda *x: op(*ids, *x, 1e-5)), (lambda *x: reference(*ids, *x, 1e-5)), tensors


@pytest.mark.parametrize("name", ["gelu", "layernorm", "embedding"])
@pytest.mark.parametrize(("tokens", "dim"), [(1000, 768), (127, 1024), (1, 384), (65, 33), (0, 64), (9, 3072)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_layer_errs_no_more_than_eager_torch(name, tokens, dim, dtype):
    op, reference, tensors = layer_case(name, tokens, dim, dtype)
    exact = reference(*(tensor.double() for tensor in tensors))
    eager = reference(*tensors)
    reset_dispatch_counts()
    found = op(*tensors)
    assert all(key.endswith("cuda/triton") for key in dispatch_counts())
    if tokens:
        rounding = torch.finfo(dtype).eps * exact.abs() + 1e-5 * (1 + exact.abs())
        assert ((found.double() - exact).abs() - rounding).max() <= (eager.double() - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_packed_attention_equals_the_reference(dtype, head_dim):
    lengths = torch.tensor([0, 5, 0, 300, 64, 1, 0, 17, 0])
    cu_seqlens, tokens = lengths.cumsum(0).int().to("cuda"), int(lengths.sum())
    qkv = torch.randn(tokens, 3 * 4 * head_dim, device="cuda", dtype=dtype)
    bias = torch.randn(3 * 4 * head_dim, device="cuda", dtype=dtype)
    # A limit that no sequence reaches, as for a captured graph.
    found = encoder_layer.packed_self_attention(qkv, bias, cu_seqlens, 4, 512)
    wanted = encoder_layer.packed_self_attention_reference((qkv + bias).double(), None, cu_seqlens, 4)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps)
    q, kv = qkv[: len(lengths) - 1, : 4 * head_dim].contiguous(), qkv[:, 4 * head_dim :].contiguous()
    found = encoder_layer.packed_cls_attention(q, kv, cu_seqlens, 4, 512)
    wanted = encoder_layer.packed_cls_attention_reference(q.double(), kv.double(), cu_seqlens, 4)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_an_encoder_layer_does_not_wait_for_the_device():
    cases = [layer_case(name, 40, 64, torch.float16) for name in ("gelu", "layernorm", "embedding")]
    qkv, cu_seqlens = torch.randn(40, 192, device="cuda").half(), torch.tensor([0, 9, 9, 40], device="cuda").int()

    def step():
        for op, _, tensors in cases:
            op(*tensors)
        encoder_layer.packed_self_attention(qkv, None, cu_seqlens, 2, 31)
        encoder_layer.packed_cls_attention(qkv[:3, :64].contiguous(), qkv[:, 64:].contiguous(), cu_seqlens, 2, 31)

    step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
