"""ANCE's pairwise loss."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.ops import pairwise_loss

# On a GPU, which has no interpreter, test_triton_kernels.py runs these kernels.
INTERPRETED = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []


def by_hand(q, pos, neg, scale, mask):
    """The definition in Python floats."""
    rows = []
    for i in range(len(q)):
        terms = []
        for j in range(neg.shape[1]):
            if mask[i, j]:
                x = scale * float(q[i] @ neg[i, j] - q[i] @ pos[i])
                terms.append(max(x, 0) + math.log1p(math.exp(-abs(x))))
        rows.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(rows) / len(rows) if rows else 0.0


def leaves_of(batch, negatives, dim, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((batch, dim), (batch, dim), (batch, negatives, dim))
    return [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(0, 5),
    negatives=st.integers(0, 4),
    dim=st.sampled_from([1, 7, 16]),
    scale=st.sampled_from([0.0, 0.5, 1.0, 20.0]),
    seed=st.integers(0, 999),
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_it_is_the_mean_over_rows_of_the_mean_over_valid_negatives(backend, batch, negatives, dim, scale, seed):
    q, pos, neg = leaves_of(batch, negatives, dim, seed=seed)
    mask = torch.rand(batch, negatives, generator=torch.Generator().manual_seed(seed)) < 0.6
    loss = pairwise_loss(q, pos, neg, scale=scale, mask=mask, backend=backend)
    with torch.no_grad():
        assert loss.item() == pytest.approx(by_hand(q, pos, neg, scale, mask), rel=1e-12, abs=1e-12)
        full = torch.ones_like(mask)
        assert pairwise_loss(q, pos, neg, scale=scale, backend=backend).item() == pytest.approx(
            by_hand(q, pos, neg, scale, full), rel=1e-12, abs=1e-12
        )


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_pass_gradcheck_in_float64(backend, masked):
    leaves = [*leaves_of(3, 2, 4), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)]
    mask = torch.tensor([[True, False], [False, False], [True, True]]) if masked else None

    def run(q, pos, neg, scale):
        return pairwise_loss(q, pos, neg, scale=scale, mask=mask, backend=backend)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_error_is_that_of_fp32_whatever_the_input_dtype_and_autocast(dtype):
    # Scores near 700, as ANCE's are: there a bf16 score would be off by up to 2.
    leaves = [(t.detach() * 3).to(dtype).requires_grad_() for t in leaves_of(4, 3, 64)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pairwise_loss(*leaves, scale=0.1)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = pairwise_loss(*wide, scale=0.1, backend="reference")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    grads = torch.autograd.grad(loss, leaves)
    # Atol: half of the smallest fp16 step; rtol: rounding to the dtype of the gradient.
    rtol = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for mine, theirs in zip(grads, torch.autograd.grad(exact, wide), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_stands_in_masked_negatives_has_no_influence(backend):
    q, pos, neg = leaves_of(2, 3, 4, torch.float32)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    poisoned = neg.detach().clone()
    poisoned[~mask] = float("nan")
    poisoned.requires_grad_()
    clean = pairwise_loss(q, pos, neg, mask=mask, backend=backend)
    dirty = pairwise_loss(q, pos, poisoned, mask=mask, backend=backend)
    assert clean.item() == dirty.item()
    wanted = torch.autograd.grad(clean, (q, pos, neg))
    for mine, theirs in zip(torch.autograd.grad(dirty, (q, pos, poisoned)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert not wanted[2][~mask].any()


def test_huge_margins_neither_overflow_nor_lose_their_gradient():
    q = torch.ones(1, 1, requires_grad=True)
    worst = pairwise_loss(q, torch.zeros(1, 1), torch.full((1, 1, 1), 1e5))
    (grad,) = torch.autograd.grad(worst, q)
    assert (worst.item(), grad.item()) == (1e5, 1e5)
    best = pairwise_loss(q, torch.full((1, 1), 1e5), torch.zeros(1, 1, 1))
    (grad,) = torch.autograd.grad(best, q)
    assert (best.item(), grad.item()) == (0.0, 0.0)


def test_a_second_backward_pass_reads_unchanged_gradients():
    q, pos, neg = leaves_of(2, 2, 3, torch.float32)
    loss = pairwise_loss(q, pos, neg)
    first = torch.autograd.grad(loss, q, retain_graph=True)[0]
    kept = first.clone()
    first.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss * 2, q)[0], 2 * kept)


def test_a_double_backward_raises():
    q, pos, neg = leaves_of(2, 2, 3)
    (grad,) = torch.autograd.grad(pairwise_loss(q, pos, neg), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["torch", *INTERPRETED])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need", [False, True])
def test_the_custom_op_passes_opcheck(backend, masked, need):
    leaves = leaves_of(3, 2, 4, torch.float32)
    if not need:
        leaves = [leaf.detach() for leaf in leaves]
    mask = torch.tensor([[True, False], [False, False], [True, True]]) if masked else None
    scale = torch.tensor(2.0, requires_grad=need)
    torch.library.opcheck(torch.ops.ance_fast.pairwise_loss.default, (*leaves, scale, mask, need, need, backend))


def test_it_compiles_into_one_graph_with_its_gradient():
    leaves = leaves_of(3, 2, 4, torch.float32)
    compiled = torch.compile(lambda *x: pairwise_loss(*x, scale=3.0), fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(pairwise_loss(*leaves, scale=3.0), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.ones(2)}, r"q must be floating point \[B, D\]"),
        ({"pos": torch.ones(3, 3)}, r"q, pos and neg must be"),
        ({"neg": torch.ones(2, 3)}, r"neg must be floating point \[B, H, D\]"),
        ({"neg": torch.ones(2, 1, 4)}, r"q, pos and neg must be"),
        ({"neg": torch.ones(2, 1, 3).double()}, "make them equal"),
        ({"mask": torch.ones(2, 1)}, "mask must be bool"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, "mask must be bool"),
        ({"scale": torch.ones(2)}, "scale must be a number or a one-element float tensor"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    arguments = {"q": torch.ones(2, 3), "pos": torch.ones(2, 3), "neg": torch.ones(2, 1, 3)} | changes
    with pytest.raises(ConfigError, match=message):
        pairwise_loss(**arguments)
