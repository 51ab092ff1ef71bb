"""Pooling and normalisation of packed tokens, and the ANCE head."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from ance_fast.errors import ConfigError
from ance_fast.ops import pool_head, pool_normalize
from ance_fast.ops.pool_normalize import MODES, NORMS, pool_normalize_reference
from ance_fast.ops.pool_normalize_wiring import pool_backward, pool_forward

# On a GPU, which has no interpreter, test_triton_kernels.py runs these kernels.
INTERPRETED = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []


def offsets(*lengths: int) -> torch.Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0)).to(torch.int32)


def one_by_one(hidden, lengths, mode, norm, weight=None, bias=None, eps=1e-12):
    """The definition, sequence by sequence."""
    rows = []
    for tokens in hidden.split(list(lengths)):
        if len(tokens) == 0:
            rows.append(hidden.new_zeros(hidden.shape[1]))
            continue
        pooled = {"mean": tokens.mean(0), "cls": tokens[0], "last": tokens[-1], "max": tokens.amax(0)}[mode]
        if norm == "l2":
            pooled = F.normalize(pooled, dim=0, eps=eps)
        elif norm == "layernorm":
            pooled = F.layer_norm(pooled, pooled.shape, weight, bias, eps)
        rows.append(pooled)
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_values_and_gradients_are_those_of_each_sequence_alone(mode, norm, backend):
    lengths, dim = (3, 0, 1, 12, 5, 0), 17
    hidden = torch.randn(sum(lengths), dim, requires_grad=True)
    parameters = {}
    if norm == "layernorm":
        parameters = {"weight": torch.randn(dim, requires_grad=True), "bias": torch.randn(dim, requires_grad=True)}
    leaves = [hidden, *parameters.values()]
    upstream = torch.randn(len(lengths), dim)
    wanted = one_by_one(hidden, lengths, mode, norm, **parameters)
    actual = pool_normalize(hidden, offsets(*lengths), mode=mode, norm=norm, backend=backend, **parameters)
    torch.testing.assert_close(actual, wanted)
    for mine, theirs in zip(
        torch.autograd.grad((actual * upstream).sum(), leaves),
        torch.autograd.grad((wanted * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_reference_passes_gradcheck_in_float64(mode, norm):
    cu = offsets(2, 0, 3, 1)
    leaves = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True)]
    if norm == "layernorm":
        leaves += [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def run(hidden, weight=None, bias=None):
        return pool_normalize(hidden, cu, mode=mode, norm=norm, weight=weight, bias=bias)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_fp32(dtype):
    hidden = torch.full((4096, 1), 1.0, dtype=dtype)
    hidden[0] = 2048.0  # in either type 2048 + 1 == 2048
    out = pool_normalize(hidden, offsets(4096), norm="none", out_dtype=torch.float32)
    torch.testing.assert_close(out, torch.tensor([[(2048 + 4095) / 4096]]))
    assert pool_normalize(hidden, offsets(4096)).dtype == dtype


def test_gradients_have_the_dtype_of_their_tensor():
    hidden = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float16, requires_grad=True)
    pool_normalize(hidden, offsets(4), norm="layernorm", weight=weight, bias=bias).sum().backward()
    assert (hidden.grad.dtype, weight.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.float32, torch.float16)


def test_only_the_parameters_given_get_a_gradient():
    hidden = torch.randn(3, 8)
    bias = torch.randn(8, requires_grad=True)
    pool_normalize(hidden, offsets(2, 1), norm="layernorm", bias=bias, eps=1e-5).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((8,), 2.0))


def test_a_strided_input_gives_what_its_copy_gives():
    hidden = torch.randn(7, 5).T
    assert not hidden.is_contiguous()
    torch.testing.assert_close(
        pool_normalize(hidden, offsets(2, 3)), pool_normalize(hidden.contiguous(), offsets(2, 3)), rtol=0, atol=0
    )


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_no_tokens_give_zeros_and_an_empty_gradient(lengths, backend):
    hidden = torch.empty(0, 3, requires_grad=True)
    for mode in MODES:
        out = pool_normalize(hidden, offsets(*lengths), mode=mode, backend=backend)
        assert out.shape == (len(lengths), 3)
        assert not out.any()
        (grad,) = torch.autograd.grad(out.sum(), hidden)
        assert grad.shape == (0, 3)


def test_the_direct_path_without_grad_gives_the_bits_of_the_custom_op():
    hidden = torch.randn(9, 17)
    for mode in MODES:
        direct = pool_normalize(hidden, offsets(4, 0, 5), mode=mode)
        through = pool_normalize(hidden.requires_grad_(), offsets(4, 0, 5), mode=mode)
        assert through.grad_fn is not None
        assert torch.equal(direct, through.detach())
        hidden = hidden.detach()


def test_nothing_is_saved_when_no_gradient_is_wanted():
    hidden = torch.randn(3, 4)
    with torch.inference_mode():
        assert pool_normalize(hidden, offsets(3)).shape == (1, 4)
    settings = ("mean", "l2", 1e-12, torch.float32, "cpp", False)
    _, pooled, stats, argmax = pool_forward(hidden, offsets(3), None, None, *settings)
    assert pooled.numel() == stats.numel() == argmax.numel() == 0


def test_a_double_backward_raises_instead_of_leaving_the_second_derivative_out():
    hidden = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(pool_normalize(hidden, offsets(3)).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once; use backend='reference'"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(
        pool_normalize(hidden, offsets(3), backend="reference").sum(), hidden, create_graph=True
    )
    grad.square().sum().backward()
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["cpp", *INTERPRETED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_custom_ops_pass_opcheck(backend, mode, norm):
    parameters = [torch.randn(4, requires_grad=True) if norm == "layernorm" else None for _ in range(2)]
    hidden, cu = torch.randn(5, 4, requires_grad=True), offsets(2, 0, 3)
    arguments = (hidden, cu, *parameters, mode, norm, 1e-12)
    torch.library.opcheck(pool_forward, (*arguments, torch.float32, backend, True))
    torch.library.opcheck(
        pool_forward, (hidden.detach(), cu, None, None, mode, norm, 1e-12, torch.float16, backend, False)
    )
    with torch.no_grad():
        saved = [t.detach() for t in pool_forward(*arguments, torch.float32, backend, True)]
    weight = None if parameters[0] is None else parameters[0].detach()
    call = (torch.randn(3, 4), cu, weight, *saved, mode, norm, 1e-12, 5, norm == "layernorm", torch.float32, backend)
    torch.library.opcheck(pool_backward, call, test_utils=("test_schema", "test_faketensor"))


def test_it_compiles_into_one_graph_with_its_gradient():
    hidden, cu = torch.randn(9, 6, requires_grad=True), offsets(4, 5)
    compiled = torch.compile(lambda h, c: pool_normalize(h, c), fullgraph=True, backend="aot_eager")
    upstream = torch.randn(2, 6)
    eager = torch.autograd.grad((pool_normalize(hidden, cu) * upstream).sum(), hidden)
    torch.testing.assert_close(torch.autograd.grad((compiled(hidden, cu) * upstream).sum(), hidden), eager)


def test_it_compiles_with_sizes_that_change():
    compiled = torch.compile(lambda h, c: pool_normalize(h, c), fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths, dim in (((4, 5), 6), ((3, 3, 4), 6), ((3, 3, 4), 7)):
        hidden, cu = torch.randn(sum(lengths), dim), offsets(*lengths)
        torch.testing.assert_close(compiled(hidden, cu), pool_normalize(hidden, cu))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "median"}, "mode is 'median'"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"hidden": torch.zeros(4)}, r"hidden must be floating point \[T, D\]"),
        ({"hidden": torch.zeros(4, 3, dtype=torch.int64)}, "hidden must be floating point"),
        ({"cu_seqlens": torch.tensor([0, 4])}, r"cu_seqlens must be int32 \[B \+ 1\], got torch.int64"),
        ({"cu_seqlens": offsets(4).to("meta")}, "cu_seqlens is on meta, hidden on cpu"),
        ({"cu_seqlens": offsets(5)}, "cu_seqlens ends with 5, but hidden has 4 tokens"),
        ({"cu_seqlens": torch.tensor([0, 5, 4], dtype=torch.int32)}, "cu_seqlens decreases at entry 2"),
        ({"cu_seqlens": torch.tensor([1, 4], dtype=torch.int32)}, "cu_seqlens must start with 0"),
        ({"cu_seqlens": offsets(5), "backend": "torch"}, "must rise from 0 to the 4 rows"),
        ({"cu_seqlens": torch.tensor([0, 5, 4], dtype=torch.int32), "backend": "torch"}, "must rise from 0"),
        ({"cu_seqlens": torch.tensor([1, 4], dtype=torch.int32), "backend": "torch"}, "must rise from 0"),
        ({"weight": torch.ones(3)}, "weight belongs to norm='layernorm'"),
        ({"norm": "layernorm", "bias": torch.ones(2)}, r"bias must be \[3\], got \[2\]"),
        ({"norm": "layernorm", "bias": torch.ones(3, device="meta")}, "bias is on meta"),
        ({"backend": "gpu"}, "it must be one of auto, cpp, cuda, triton, torch, reference"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    arguments = {"hidden": torch.zeros(4, 3), "cu_seqlens": offsets(4)} | changes
    with pytest.raises(ConfigError, match=message):
        pool_normalize(arguments.pop("hidden"), arguments.pop("cu_seqlens"), **arguments)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_head_is_pool_then_linear_then_norm(backend):
    lengths, dim, width = (2, 0, 3), 6, 5
    hidden = torch.randn(5, dim, requires_grad=True)
    head = torch.nn.Linear(dim, width)
    norm = torch.nn.LayerNorm(width)
    torch.nn.init.normal_(norm.weight)
    leaves = [hidden, *head.parameters(), *norm.parameters()]
    actual = pool_head(
        hidden, offsets(*lengths), head.weight, head.bias, weight=norm.weight, bias=norm.bias, backend=backend
    )
    first = norm(head(hidden[[0, 2]]))
    wanted = torch.stack([first[0], torch.zeros(width), first[1]])
    torch.testing.assert_close(actual, wanted)
    upstream = torch.randn(3, width)
    for mine, theirs in zip(
        torch.autograd.grad((actual * upstream).sum(), leaves),
        torch.autograd.grad((wanted * upstream).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def head_case(lengths=(2, 0, 3), dim=6, width=5, dtype=torch.float32):
    """Offsets, and in `dtype` the rows, weight and bias of the Linear, weight and bias of the norm."""
    shapes = ((sum(lengths), dim), (width, dim), (width,), (width,), (width,))
    return offsets(*lengths), [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("backend", ["auto", "torch", *INTERPRETED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_head_and_its_gradients_are_those_of_float64(mode, norm, backend):
    cu, leaves = head_case()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    parameters = 2 if norm == "layernorm" else 0

    def run(leaves, backend):
        named = dict(zip(("weight", "bias"), leaves[3 : 3 + parameters], strict=False))
        return pool_head(leaves[0], cu, leaves[1], leaves[2], mode=mode, norm=norm, backend=backend, **named)

    actual, wanted = run(leaves, backend), run(exact, "reference")
    assert wanted.dtype == torch.float64
    torch.testing.assert_close(actual, wanted.float())
    upstream = torch.randn(3, 5)
    for mine, theirs in zip(
        torch.autograd.grad((actual * upstream).sum(), leaves[: 3 + parameters]),
        torch.autograd.grad((wanted * upstream).sum(), exact[: 3 + parameters]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-5)


def test_under_autocast_the_heads_product_alone_is_rounded():
    cu, (hidden, head, head_bias, weight, bias) = head_case()
    exact = pool_head(hidden, cu, head, head_bias, weight=weight, bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pool_head(hidden, cu, head, head_bias, weight=weight, bias=bias)
        product = F.linear(hidden[[0, 2]], head, head_bias)
    assert (product.dtype, rounded.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(rounded[[0, 2]], F.layer_norm(product.float(), (5,), weight, bias))
    assert not torch.equal(rounded, exact)
    rounded.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in (hidden, head, head_bias, weight, bias))


def test_a_head_in_fp32_takes_rows_in_half_precision():
    cu, (hidden, *parameters) = head_case()
    rows = hidden.detach().bfloat16().requires_grad_()
    head, head_bias, weight, bias = parameters
    out = pool_head(rows, cu, head, head_bias, weight=weight, bias=bias, out_dtype=torch.float32)
    wanted = pool_head(rows.float(), cu, head, head_bias, weight=weight, bias=bias)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    assert pool_head(rows, cu, head, head_bias, norm="none").dtype == torch.bfloat16
    out.sum().backward()
    assert rows.grad.dtype == torch.bfloat16


def test_the_head_compiles_into_one_graph_with_its_gradients():
    cu, leaves = head_case()

    def run(hidden, head, head_bias, weight, bias):
        return pool_head(hidden, cu, head, head_bias, weight=weight, bias=bias)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    upstream = torch.randn(3, 5)
    eager = torch.autograd.grad((run(*leaves) * upstream).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((compiled(*leaves) * upstream).sum(), leaves), eager)


def test_a_head_of_another_width_is_refused():
    with pytest.raises(ConfigError, match=r"head_weight must be \[E, D\]"):
        pool_head(torch.zeros(4, 3), offsets(4), torch.zeros(2, 4))


def test_the_reference_keeps_float64():
    hidden = torch.randn(3, 2, dtype=torch.float64)
    assert pool_normalize_reference(hidden, offsets(3)).dtype == torch.float64
    assert pool_normalize_reference(hidden, offsets(3), out_dtype=torch.float32).dtype == torch.float32


def test_the_result_may_be_changed_in_place():
    hidden, cu = torch.randn(5, 4, requires_grad=True), offsets(2, 3)
    changed = pool_normalize(hidden, cu)
    changed *= 2
    (mine,) = torch.autograd.grad(changed.sum(), hidden)
    (wanted,) = torch.autograd.grad((pool_normalize(hidden, cu) * 2).sum(), hidden)
    torch.testing.assert_close(mine, wanted)
