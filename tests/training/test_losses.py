"""The training losses are those of the papers, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_batch import examples_of

from ance_fast.training.batch import BatchMaker
from ance_fast.training.losses import batch_loss
from ance_fast.training.negatives import NegativeSampler

WIDTH = 6


@pytest.mark.parametrize("size", [1, 5, 8])
def test_the_contrastive_loss_is_dprs_in_batch_loss(size: int) -> None:
    """Contexts interleave a query's positive and its negative; the target of query i is context 2i."""
    examples = examples_of([3] * 24, [2] * 8)
    make = BatchMaker(examples, NegativeSampler(examples, seed=0, count=1))
    queries = np.random.default_rng(size).permutation(8)[:size]
    positive, negative = queries, queries + 12
    batch = make.of(queries, positive, negative[:, None])
    draw = torch.Generator().manual_seed(1)
    q = torch.randn(8, WIDTH, generator=draw, dtype=torch.float64)[queries].requires_grad_()
    p = torch.randn(24, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    contexts = torch.stack([p[positive], p[negative]], dim=1).reshape(2 * size, WIDTH)
    scores = torch.log_softmax(q @ contexts.T, dim=1)
    wanted = torch.nn.functional.nll_loss(scores, torch.arange(size) * 2)
    found = batch_loss("contrastive", torch.cat([q, p[batch.passage_rows]]), batch, 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7)
    for mine, theirs in zip(torch.autograd.grad(found, [q, p]), torch.autograd.grad(wanted, [q, p]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_pairwise_loss_of_triples_is_ances_with_a_query_as_often_as_it_has_triples() -> None:
    examples = examples_of([3] * 12, [2] * 8)
    make = BatchMaker(examples, NegativeSampler(examples, seed=0, count=1))
    queries, positive, negative = np.array([4, 4, 4, 1]), np.array([4, 4, 4, 1]), np.array([7, 9, 7, 4])
    batch = make.of(queries, positive, negative[:, None])
    assert sum(len(chunk) for chunk in batch.chunks) == 2 + 4
    draw = torch.Generator().manual_seed(2)
    q, p = (torch.randn(count, WIDTH, generator=draw, dtype=torch.float64) for count in (8, 12))
    logits = torch.stack([(q[queries] * p[positive]).sum(1), (q[queries] * p[negative]).sum(1)], dim=1)
    wanted = -torch.log_softmax(logits, dim=1)[:, 0].mean()
    found = batch_loss("pairwise", torch.cat([q[queries], p[batch.passage_rows]]), batch, 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7)
