"""The inference kernels against their float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ance_fast import _C
from ance_fast.ops import encoder_layer as layer

ISAS = ["scalar"] + [isa for isa in ("avx2", "avx512") if isa in str(_C.build_info()["cpu_features"])]


def bits(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.sampled_from([2, 7, 16, 33, 384]), st.floats(0.1, 100), st.integers(1, 3))
def test_embed_layernorm_equals_the_reference(isa: str, rows: int, dim: int, scale: float, threads: int) -> None:
    words, positions, constant = bits(0, 11, dim, scale=scale), bits(1, 5, dim, scale=scale), bits(2, dim)
    weight, shift = bits(3, dim), bits(4, dim)
    ids, places = torch.arange(rows) * 7 % 11, torch.arange(rows) * 3 % 5
    tables = (words, positions, constant, weight, shift)
    expected = layer.embed_layernorm_reference(ids, places, *[table.double() for table in tables], 1e-5)
    eager = layer.embed_layernorm_reference(ids, places, *tables, 1e-5)
    out = torch.full((rows, dim), float("nan"))
    parts = [part.numpy() for part in (ids, places, *tables)]
    _C.embed_layernorm(*parts, eps=1e-5, out=out.numpy(), threads=threads, isa=isa)
    allowed = 3 * (eager.double() - expected).abs().max() + 1e-5 if rows else 0.0
    assert rows == 0 or (out.double() - expected).abs().max() <= allowed


@pytest.mark.parametrize(("name", "token", "position"), [("input_ids", 11, 0), ("position_ids", 0, -1)])
def test_an_id_that_a_table_lacks_is_named(name: str, token: int, position: int) -> None:
    table = bits(0, 11, 16)
    ids, places = torch.tensor([3, token]), torch.tensor([0, position])
    with pytest.raises(IndexError, match=rf"{name}\[1\] is .*; the table has 11 entries"):
        layer.embed_layernorm(ids, places, table, table, table[0], table[0], table[0], 1e-5, backend="cpp")


@pytest.mark.parametrize("isa", ISAS)
def test_bias_gelu_is_exact_to_float_precision_everywhere(isa: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.logspace(-30, 1, 999), -torch.logspace(-30, 1, 999)])
    expected = torch.nn.functional.gelu(x.double())
    _C.bias_gelu(x.unsqueeze(0).numpy(), np.zeros(len(x), np.float32), isa=isa)
    torch.testing.assert_close(x.double(), expected, atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_nan(isa: str) -> None:
    x = torch.full((1, 16), float("nan"))
    _C.bias_gelu(x.numpy(), np.zeros(16, np.float32), isa=isa)
    assert x.isnan().all()
    out, qkv = torch.zeros(40, 16), bits(0, 40, 48)
    qkv[7, 3] = float("nan")  # a query: its row alone
    lengths = np.array([0, 40], np.int32)
    _C.packed_attention(qkv.numpy(), np.zeros(48, np.float32), lengths, heads=1, scale=1.0, out=out.numpy(), isa=isa)
    assert out.isnan().any(dim=1).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.sampled_from([1, 7, 16, 33, 384]), st.floats(0.01, 30), st.integers(1, 3))
def test_bias_gelu_equals_the_reference(isa: str, rows: int, dim: int, scale: float, threads: int) -> None:
    x, bias = bits(rows, rows, dim, scale=scale), bits(1, dim)
    expected = layer.bias_gelu_reference(x.double(), bias.double())
    _C.bias_gelu(x.numpy(), bias.numpy(), threads=threads, isa=isa)
    torch.testing.assert_close(x.double(), expected, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_keeps_its_limits(isa: str) -> None:
    x = torch.tensor([[-1e30, -100.0, -10.0, -0.0, 0.0, 1e-30, 10.0, 1e30]])
    _C.bias_gelu(x.numpy(), np.zeros(8, np.float32), isa=isa)
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 1e30]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.sampled_from([2, 7, 16, 33, 384]), st.floats(0.1, 100), st.integers(1, 3))
def test_bias_residual_layernorm_equals_the_reference(
    isa: str, rows: int, dim: int, scale: float, threads: int
) -> None:
    x, residual = bits(0, rows, dim, scale=scale), bits(1, rows, dim)
    bias, weight, shift = bits(2, dim), bits(3, dim), bits(4, dim)
    arguments = [part.double() for part in (x, bias, residual, weight, shift)]
    expected = layer.bias_residual_layernorm_reference(*arguments, 1e-5)
    eager = layer.bias_residual_layernorm_reference(x, bias, residual, weight, shift, 1e-5)
    parts = [part.numpy() for part in (bias, residual, weight, shift)]
    _C.bias_residual_layernorm(x.numpy(), *parts, eps=1e-5, threads=threads, isa=isa)
    allowed = 3 * (eager.double() - expected).abs().max() + 1e-5 if rows else 0.0
    assert rows == 0 or (x.double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=6),
    st.sampled_from([(1, 16), (3, 32), (2, 48), (2, 64)]),
    st.floats(0.1, 8),
    st.integers(1, 3),
)
def test_packed_attention_equals_the_reference(
    isa: str, lengths: list[int], shape: tuple[int, int], scale: float, threads: int
) -> None:
    heads, head_dim = shape
    width, tokens = heads * head_dim, sum(lengths)
    qkv, bias = bits(0, tokens, 3 * width, scale=scale), bits(1, 3 * width)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    expected = layer.packed_self_attention_reference(qkv.double(), bias.double(), cu_seqlens, heads)
    eager = layer.packed_self_attention_reference(qkv, bias, cu_seqlens, heads)
    out = torch.full((tokens, width), float("nan"))
    _C.packed_attention(
        qkv.numpy(),
        bias.numpy(),
        cu_seqlens.numpy(),
        heads=heads,
        scale=head_dim**-0.5,
        out=out.numpy(),
        threads=threads,
        isa=isa,
    )
    allowed = 3 * (eager.double() - expected).abs().max() + 1e-4 * scale if tokens else 0.0
    assert tokens == 0 or (out.double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=6),
    st.sampled_from([(1, 16), (3, 32), (2, 64)]),
    st.floats(0.1, 8),
    st.integers(1, 3),
)
def test_attention_of_first_tokens_equals_the_reference(
    isa: str, lengths: list[int], shape: tuple[int, int], scale: float, threads: int
) -> None:
    heads, head_dim = shape
    width, tokens = heads * head_dim, sum(lengths)
    q, kv = bits(0, len(lengths), width, scale=scale), bits(1, tokens, 2 * width)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    expected = layer.packed_cls_attention_reference(q.double(), kv.double(), cu_seqlens, heads)
    out = torch.full((len(lengths), width), float("nan"))
    arguments = {"heads": heads, "scale": head_dim**-0.5, "out": out.numpy(), "threads": threads, "isa": isa}
    _C.packed_cls_attention(q.numpy(), kv.numpy(), cu_seqlens.numpy(), **arguments)
    assert (out.double() - expected).abs().max() <= 1e-5 * max(1.0, scale)
    assert not out[torch.tensor(lengths) == 0].any()


def test_attention_of_first_tokens_is_a_row_of_the_whole() -> None:
    qkv, cu_seqlens = bits(0, 9, 96), torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    whole = layer.packed_self_attention(qkv, None, cu_seqlens, 2, 5)
    for backend in ("cpp", "torch"):
        found = layer.packed_cls_attention(
            qkv[[0, 4, 4], :32].contiguous(), qkv[:, 32:].contiguous(), cu_seqlens, 2, 5, backend=backend
        )
        torch.testing.assert_close(found[[0, 2]], whole[[0, 4]], atol=1e-6, rtol=1e-6)
        assert not found[1].any()


def test_scores_of_any_size_do_not_overflow() -> None:
    q, kv = torch.full((1, 16), 1e4), torch.cat([bits(0, 40, 16), bits(1, 40, 16)], dim=1)
    cu_seqlens = torch.tensor([0, 40], dtype=torch.int32)
    best = kv[kv[:, :16].sum(1).argmax(), 16:]
    torch.testing.assert_close(layer.packed_cls_attention(q, kv, cu_seqlens, 1, 40)[0], best)


def test_an_embedding_outside_its_table_is_an_error_on_the_cpu() -> None:
    table, row = bits(0, 4, 32), bits(1, 32)
    ids = torch.tensor([0, 4])
    with pytest.raises(IndexError):
        layer.embed_layernorm(ids, torch.zeros_like(ids), table, table, row, row, row, 1e-5)


def test_the_public_functions_agree_on_every_backend() -> None:
    x, bias, residual = bits(0, 9, 48), bits(1, 48), bits(2, 9, 48)
    for backend in ("cpp", "torch"):
        torch.testing.assert_close(
            layer.bias_gelu_(x.clone(), bias, backend=backend), layer.bias_gelu_reference(x, bias), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            layer.bias_residual_layernorm_(x.clone(), bias, residual, bias, bias, 1e-5, backend=backend),
            layer.bias_residual_layernorm_reference(x, bias, residual, bias, bias, 1e-5),
            atol=1e-5,
            rtol=0,
        )
    qkv, cu_seqlens = bits(3, 9, 48), torch.tensor([0, 4, 9], dtype=torch.int32)
    for backend in ("cpp", "torch"):
        torch.testing.assert_close(
            layer.packed_self_attention(qkv, bias, cu_seqlens, 1, 5, backend=backend),
            layer.packed_self_attention_reference(qkv, bias, cu_seqlens, 1),
            atol=1e-5,
            rtol=0,
        )


def test_arguments_that_do_not_fit_are_refused() -> None:
    good = np.zeros((4, 48), np.float32)
    with pytest.raises(ValueError, match="bias must have shape"):
        _C.bias_gelu(good, np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="cu_seqlens ends with 3, but qkv has 4 tokens"):
        _C.packed_attention(
            good,
            np.zeros(48, np.float32),
            np.array([0, 3], np.int32),
            heads=1,
            scale=1.0,
            out=np.zeros((4, 16), np.float32),
        )
    query, room = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    keys = np.zeros((4, 32), np.float32)
    for offsets, message in (
        ([0, 3], "cu_seqlens ends with 3, but kv has 4 tokens"),
        ([1, 4], "cu_seqlens must start with 0, got 1"),
        ([0, 4, 3], "cu_seqlens must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.packed_cls_attention(query, keys, np.array(offsets, np.int32), heads=1, scale=1.0, out=room)
    with pytest.raises(ValueError, match="head_dim is 8"):
        _C.packed_cls_attention(query, keys, np.array([0, 4], np.int32), heads=2, scale=1.0, out=room)
    two = np.zeros((2, 16), np.float32)
    with pytest.raises(ValueError, match="cu_seqlens decreases at entry 2"):
        _C.packed_cls_attention(two, keys, np.array([0, 4, 3], np.int32), heads=1, scale=1.0, out=two.copy())
    with pytest.raises(ValueError, match="head_dim is 8"):
        _C.packed_attention(
            good,
            np.zeros(48, np.float32),
            np.array([0, 4], np.int32),
            heads=2,
            scale=1.0,
            out=np.zeros((4, 16), np.float32),
        )
