"""Exact streaming top-k."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.ops import topk_inner_product


def brute_force(queries, vectors, k, allow=None):
    """By (-score, position), padded with -inf and -1."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if allow is not None:
        scores[:, ~allow] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores))[:, :k]
    best = np.take_along_axis(scores, order, 1)
    order[np.isneginf(best)] = -1
    pad = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, pad, constant_values=-np.inf), np.pad(order, pad, constant_values=-1)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(0, 5),
    total=st.integers(0, 40),
    k=st.integers(1, 45),
    chunk=st.integers(1, 50),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_it_equals_brute_force_with_many_ties(n, total, k, chunk, masked, seed):
    rng = np.random.default_rng(seed)
    # Small integers: every score is exact and most of them occur several times.
    queries = rng.integers(-1, 2, (n, 3)).astype(np.float32)
    vectors = rng.integers(-1, 2, (total, 3)).astype(np.float32)
    allow = rng.random(total) < 0.6 if masked else None
    scores, positions = topk_inner_product(
        torch.from_numpy(queries),
        torch.from_numpy(vectors),
        k,
        chunk=chunk,
        allow=None if allow is None else torch.from_numpy(allow),
    )
    wanted_scores, wanted_positions = brute_force(queries, vectors, k, allow)
    np.testing.assert_array_equal(positions.numpy(), wanted_positions)
    np.testing.assert_array_equal(scores.numpy(), wanted_scores.astype(np.float32))
    assert (scores.dtype, positions.dtype) == (torch.float32, torch.int64)


def test_queries_are_searched_in_blocks_when_the_scores_would_not_fit(monkeypatch):
    queries, vectors = torch.randn(9, 4), torch.randn(30, 4)
    whole = topk_inner_product(queries, vectors, 5)
    monkeypatch.setattr(sys.modules["ance_fast.ops.topk_inner_product"], "BLOCK_BYTES", 4 * 35 * 2)
    for mine, theirs in zip(topk_inner_product(queries, vectors, 5), whole, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_precision_inputs_are_scored_in_fp32_even_under_autocast():
    queries = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    vectors = torch.tensor([[256.0, 0.0], [256.0, 1.0]], dtype=torch.bfloat16)  # equal once rounded to bf16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, positions = topk_inner_product(queries, vectors, 2)
    assert (scores.tolist(), positions.tolist()) == ([[257.0, 256.0]], [[1, 0]])


def test_a_nan_vector_is_never_returned():
    vectors = torch.tensor([[1.0], [float("nan")], [2.0]])
    scores, positions = topk_inner_product(torch.ones(1, 1), vectors, 3)
    assert positions.tolist() == [[2, 0, -1]]
    assert scores.tolist() == [[2.0, 1.0, -float("inf")]]


def test_it_gives_no_gradient_and_does_not_fail_on_tensors_that_want_one():
    scores, _ = topk_inner_product(torch.ones(1, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True), 1)
    assert not scores.requires_grad


def test_the_custom_op_passes_opcheck_and_compiles():
    queries, vectors = torch.randn(3, 4), torch.randn(7, 4)
    torch.library.opcheck(torch.ops.ance_fast.topk_inner_product.default, (queries, vectors, 3, 2, None))
    torch.library.opcheck(
        torch.ops.ance_fast.topk_inner_product.default, (queries, vectors, 9, 16, torch.rand(7) > 0.5)
    )
    compiled = torch.compile(lambda q, v: topk_inner_product(q, v, 3), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, vectors), topk_inner_product(queries, vectors, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k and chunk must be at least 1, got k=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"queries": torch.ones(2)}, r"queries must be floating point \[n, D\]"),
        ({"queries": torch.ones(2, 4)}, "differ in width"),
        ({"queries": torch.ones(2, 3, dtype=torch.float64)}, "make them equal"),
        ({"allow": torch.ones(4)}, r"allow must be bool \[4\]"),
        ({"allow": torch.ones(3, dtype=torch.bool)}, r"allow must be bool \[4\]"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    arguments = {"queries": torch.ones(2, 3), "vectors": torch.ones(4, 3), "k": 1} | changes
    with pytest.raises(ConfigError, match=message):
        topk_inner_product(**arguments)
