"""What all differentiable ops promise, on each backend of a CPU: accuracy at full size, every output written, gradients
that finite differences confirm, and compilation by inductor."""

from __future__ import annotations

import pytest
import torch
from op_cases import NAMES, case, value_and_gradients

from ance_fast.ops import contrastive_loss, pairwise_loss, pool_normalize


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "dim"), [(1000, 768), (127, 1024), (1, 384), (65, 1)])
def test_it_errs_no_more_than_eager_torch(name, rows, dim):
    function, leaves = case(name, rows, dim)
    exact = value_and_gradients(function, leaves, backend="reference")
    narrow = [leaf.float() for leaf in leaves]
    eager = value_and_gradients(function, narrow, backend="reference")
    for backend in ("cpp", "torch"):
        for mine, theirs, wanted in zip(
            value_and_gradients(function, narrow, backend=backend), eager, exact, strict=True
        ):
            allowed = (theirs.double() - wanted).abs().max() + 4e-6 * wanted.abs().max()
            assert (mine.double() - wanted).abs().max() <= allowed


@pytest.fixture
def poisoned_memory():
    """New tensors hold NaN until something is written."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(was)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_every_element_of_a_result_is_written(name, backend, poisoned_memory):
    function, leaves = case(name, 65, 33)
    for result in value_and_gradients(function, [leaf.float() for leaf in leaves], backend=backend):
        assert result.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_gradients_agree_with_finite_differences_in_fp32(name, backend):
    function, leaves = case(name, 9, 12)
    leaves = [leaf.float() for leaf in leaves]
    # Over a longer step another token becomes the largest.
    draw, step = torch.Generator().manual_seed(7), 1e-3 if "max" in name else 1e-2
    directions = [torch.randn(leaf.shape, generator=draw) for leaf in leaves]
    _, *gradients = value_and_gradients(function, leaves, backend=backend)
    moved = [
        function([leaf + sign * step * way for leaf, way in zip(leaves, directions, strict=True)], backend=backend)
        for sign in (1, -1)
    ]
    slope = sum((gradient * way).sum() for gradient, way in zip(gradients, directions, strict=True))
    torch.testing.assert_close(slope.double(), (moved[0] - moved[1]).double() / (2 * step), rtol=2e-2, atol=3e-3)


def test_inductor_compiles_all_of_them_into_one_graph():
    hidden, cu_seqlens = torch.randn(40, 16, requires_grad=True), torch.arange(0, 41, 2, dtype=torch.int32)

    def step(hidden, cu_seqlens):
        rows = pool_normalize(torch.tanh(hidden), cu_seqlens)
        q, pos, neg = rows[:5], rows[5:10], rows[10:].reshape(5, 2, 16)
        return contrastive_loss(q, rows[5:], scale=7.0) + pairwise_loss(q, pos, neg).sin()

    compiled = torch.compile(step, fullgraph=True)
    wanted, found = step(hidden, cu_seqlens), compiled(hidden, cu_seqlens)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, hidden), torch.autograd.grad(wanted, hidden))
