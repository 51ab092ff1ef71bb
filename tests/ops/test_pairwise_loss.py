"""ANCE's pairwise loss."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.ops import pairwise_loss
from ance_fast.ops.dispatch import choose

RANKED = ["scalar", "avx2", "avx512"]
ISAS = RANKED[: RANKED.index(_C.best_isa()) + 1]
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


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
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


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_huge_margins_neither_overflow_nor_lose_their_gradient(backend):
    q = torch.ones(1, 1, requires_grad=True)
    worst = pairwise_loss(q, torch.zeros(1, 1), torch.full((1, 1, 1), 1e5), backend=backend)
    (grad,) = torch.autograd.grad(worst, q)
    assert (worst.item(), grad.item()) == (1e5, 1e5)
    best = pairwise_loss(q, torch.full((1, 1), 1e5), torch.zeros(1, 1, 1), backend=backend)
    (grad,) = torch.autograd.grad(best, q)
    assert (best.item(), grad.item()) == (0.0, 0.0)


RESULTS = ("loss", "grad_q", "grad_pos", "grad_neg", "grad_scale")


def kernel(q, pos, neg, scale=1.0, mask=None, *, gradients=True, threads=1, isa="auto"):
    """Loss and gradients of the C++ kernel, as NumPy arrays that held NaN before."""
    shapes = [(), q.shape, pos.shape, neg.shape, ()] if gradients else [()]
    results = [np.full(shape, np.nan, np.float32) for shape in shapes]
    given = None if mask is None else mask.numpy()
    _C.pairwise_loss(
        q.numpy(), pos.numpy(), neg.numpy(), *results, scale=scale, mask=given, threads=threads, isa=isa
    )  # fmt: skip
    return results


def reference(q, pos, neg, scale, mask, dtype):
    """Loss and gradients of the reference, computed in `dtype`."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in (q, pos, neg)]
    leaves.append(torch.tensor(scale, dtype=dtype, requires_grad=True))
    loss = pairwise_loss(*leaves[:3], scale=leaves[3], mask=mask, backend="reference")
    return [t.detach().double().numpy() for t in (loss, *torch.autograd.grad(loss, leaves))]


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from(
        [
            *((1, 1, 1), (1, 5, 32), (63, 1, 768), (65, 4, 384), (127, 2, 1000), (1000, 1, 63), (65, 9, 65)),
            *((1, 3, 1024), (127, 3, 127), (1000, 3, 15), (63, 0, 32), (0, 2, 32), (3, 2, 0)),
        ]
    ),
    size=st.sampled_from([1.0, 26.0]),
    scale=st.sampled_from([0.0, 0.1, 1.0, -2.0]),
    kept=st.sampled_from([None, 0.0, 0.5, 0.9]),
    seed=st.integers(0, 999),
)
@pytest.mark.parametrize("isa", ISAS)
def test_the_kernel_errs_no_more_than_eager_torch(isa, shape, size, scale, kept, seed):
    # size 26 makes scores of up to 676, as rows of ANCE's layer norm head have them.
    leaves = [size * torch.nn.functional.normalize(t.detach(), dim=-1) for t in leaves_of(*shape, torch.float32, seed)]
    draw = torch.Generator().manual_seed(seed)
    mask = None if kept is None else torch.rand(shape[:2], generator=draw) < kept
    exact = reference(*leaves, scale, mask, torch.float64)
    eager = reference(*leaves, scale, mask, torch.float32)
    if mask is not None:
        leaves[2][~mask] = torch.nan
    found = kernel(*leaves, scale, mask, isa=isa)
    # By chance eager torch may round well: what the last bits of the scores make of each result, and of itself.
    last_bits = 1e-7 * size**2
    for name, mine, theirs, wanted in zip(RESULTS, found, eager, exact, strict=True):
        assert np.isfinite(mine).all()
        if mine.size:
            largest = np.abs(wanted).max()
            through = {"loss": abs(scale), "grad_scale": 1.0}.get(name, abs(scale) * largest)
            allowed = np.abs(theirs - wanted).max() + 1e-6 * largest + last_bits * through
            assert np.abs(mine - wanted).max() <= allowed, name
    assert kernel(*leaves, scale, mask, isa=isa, gradients=False) == [found[0]]
    if mask is not None:
        assert not found[3][~mask.numpy()].any()
        assert not found[1][~mask.any(1).numpy()].any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(300, 4, 97), (1000, 1, 200), (3, 40, 1000), (7, 3, 5)])
def test_instruction_sets_and_threads_do_not_change_a_bit(shape, masked):
    leaves = [t.detach() for t in leaves_of(*shape, torch.float32)]
    mask = torch.rand(shape[:2]) < 0.7 if masked else None
    first = kernel(*leaves, 0.3, mask, threads=1, isa="scalar")
    for isa in ISAS:
        for threads in (1, 2, 3, 8):
            for one, two in zip(first, kernel(*leaves, 0.3, mask, threads=threads, isa=isa), strict=True):
                assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("isa", ISAS)
def test_scores_near_700_are_exact_and_small_losses_keep_their_digits(isa, sign):
    q = torch.tensor([[26.0, 1.0], [1.0, 0.0]])
    pos, neg = torch.zeros(2, 2), sign * torch.tensor([[[27.0, -2.0], [26.5, 1.0]], [[16.0, 5.0], [5.0, 16.0]]])
    found = kernel(q, pos, neg, isa=isa)
    for mine, wanted in zip(found, reference(q, pos, neg, 1.0, None, torch.float64), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_a_value_that_is_not_finite_spreads_as_in_the_reference(isa, where, value):
    leaves = [t.detach() for t in leaves_of(4, 3, 70, torch.float32)]
    leaves[where][1, ..., 66] = value
    found = kernel(*leaves, isa=isa)
    for mine, wanted in zip(found, reference(*leaves, 1.0, None, torch.float64), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_without_a_valid_negative_gives_zeros_whatever_stands_in_it(isa, value):
    leaves = [t.detach() for t in leaves_of(3, 2, 20, torch.float32)]
    mask = torch.tensor([[True, True], [False, False], [False, True]])
    clean = kernel(*leaves, 1.0, mask, isa=isa)
    for leaf in leaves:
        leaf[1] = value
    for one, two in zip(clean, kernel(*leaves, 1.0, mask, isa=isa), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not clean[1][1].any()
    assert not clean[2][1].any()


def test_the_kernels_gradients_agree_with_finite_differences():
    leaves = [*leaves_of(5, 3, 33, torch.float32), torch.tensor(0.7, requires_grad=True)]
    mask = torch.rand(5, 3) < 0.7

    def loss(q, pos, neg, scale):
        return pairwise_loss(q, pos, neg, scale=scale, mask=mask, backend="cpp")

    gradients = torch.autograd.grad(loss(*leaves), leaves)
    for i, gradient in enumerate(gradients):
        way = torch.randn_like(leaves[i])
        ends = [loss(*leaves[:i], leaves[i].detach() + step * way, *leaves[i + 1 :]).item() for step in (1e-2, -1e-2)]
        assert (gradient * way).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=5e-3, abs=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strided_inputs_give_what_their_copies_give(dtype):
    q, pos, neg = (t.detach() for t in leaves_of(4, 3, 50, dtype))
    mask = torch.rand(4, 3) < 0.7
    strided = [q.T.contiguous().T, pos[:1].expand(4, 50), neg.transpose(0, 2).contiguous().transpose(0, 2)]
    assert not any(t.is_contiguous() for t in strided)
    both = [[t.requires_grad_() for t in group] for group in (strided, [q, pos[:1].repeat(4, 1), neg])]
    masks = mask.T.contiguous().T, mask
    losses = [pairwise_loss(*group, mask=m, backend="cpp") for group, m in zip(both, masks, strict=True)]
    assert torch.equal(*losses)
    grads = [torch.autograd.grad(loss, group) for loss, group in zip(losses, both, strict=True)]
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


def test_the_kernel_serves_all_but_float64_even_in_strict_mode(monkeypatch):
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert choose("pairwise_loss", "cpu", dtype).backend == "cpp"
    assert choose("pairwise_loss", "cpu", torch.float64).backend == "torch"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": np.ones((2, 4))}, TypeError, "q must be float32, got float64"),
        ({"pos": np.ones((2, 3), np.float32)}, ValueError, r"pos must have shape \[2, 4\], got \[2, 3\]"),
        ({"neg": np.ones((2, 4), np.float32)}, ValueError, r"neg must have shape \[any, any, any\]"),
        ({"neg": np.ones((2, 4, 3), np.float32).swapaxes(1, 2)}, ValueError, "neg must be C-contiguous"),
        ({"mask": np.ones((2, 3), np.uint8)}, TypeError, "mask must be bool, got uint8"),
        ({"mask": np.ones((2, 2), bool)}, ValueError, r"mask must have shape \[2, 3\]"),
        ({"loss": np.empty(1, np.float32)}, ValueError, r"loss must have shape \[\], got \[1\]"),
        ({"grad_q": np.empty((2, 4), np.float32)}, ValueError, "go together: all or none"),
        ({"isa": "neon"}, ValueError, "auto, avx512, avx2 or scalar"),
    ],
)
def test_the_binding_refuses_a_wrong_argument_with_its_name(changes, error, message):
    arguments = {name: np.ones((2, 4), np.float32) for name in ("q", "pos")}
    arguments |= {"neg": np.ones((2, 3, 4), np.float32), "loss": np.empty((), np.float32), "scale": 1.0} | changes
    with pytest.raises(error, match=message):
        _C.pairwise_loss(**arguments)


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


@pytest.mark.parametrize("backend", ["cpp", "torch", *INTERPRETED])
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
