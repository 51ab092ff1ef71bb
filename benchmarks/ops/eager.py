"""The ops as one would write them in plain torch, in fp32 whatever the dtype of the inputs (fp64 for fp64)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from benchmarks.ops.problems import Contrastive, Pairwise, Pool, Step


def wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def contrastive(problem: Contrastive) -> Tensor:
    return _cross_entropy(problem.scale * (wide(problem.q) @ wide(problem.p).T), problem)


def contrastive_autocast(problem: Contrastive) -> Tensor:
    """For use under autocast, which gives the product the narrow dtype, and so rounds the logits."""
    return _cross_entropy(problem.scale * (problem.q @ problem.p.T), problem)


def _cross_entropy(logits: Tensor, problem: Contrastive) -> Tensor:
    target = torch.arange(logits.shape[0], device=logits.device)
    if problem.doc_ids is not None:
        same = problem.doc_ids[: logits.shape[0], None] == problem.doc_ids[None, :]
        own = target[:, None] == torch.arange(logits.shape[1], device=logits.device)[None, :]
        logits = logits.masked_fill(same & ~own, -torch.inf)
    return functional.cross_entropy(logits, target)


def pool(problem: Pool) -> Tensor:
    """From packed rows."""
    starts, lengths = problem.cu_seqlens[:-1].long(), problem.cu_seqlens.diff().long()
    hidden = wide(problem.hidden)
    if problem.mode == "cls":
        pooled = hidden[starts]
    elif problem.mode == "last":
        pooled = hidden[starts + lengths - 1]
    elif problem.mode == "max":
        # unsafe: without a look at the lengths, for which a GPU would have to be waited for
        pooled = torch.segment_reduce(hidden, "max", lengths=lengths, unsafe=True)
    else:
        sequences = torch.arange(lengths.shape[0], device=hidden.device)
        owner = torch.repeat_interleave(sequences, lengths, output_size=hidden.shape[0])
        pooled = hidden.new_zeros(lengths.shape[0], hidden.shape[1]).index_add(0, owner, hidden) / lengths[:, None]
    return _normalize(pooled, problem)


def pool_padded(problem: Pool, padded: Tensor, mask: Tensor) -> Tensor:
    """From padded rows and a mask, as models that do not pack give them."""
    hidden = wide(padded)
    if problem.mode == "cls":
        pooled = hidden[:, 0]
    elif problem.mode == "max":
        pooled = hidden.masked_fill(~mask[:, :, None], -torch.inf).max(1).values
    else:
        weights = mask[:, :, None].to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return _normalize(pooled, problem)


def _normalize(pooled: Tensor, problem: Pool) -> Tensor:
    if problem.norm == "l2":
        pooled = functional.normalize(pooled, dim=1)
    elif problem.norm == "layernorm" and problem.weight is not None and problem.bias is not None:
        pooled = functional.layer_norm(pooled, pooled.shape[1:], wide(problem.weight), wide(problem.bias))
    return pooled.to(problem.hidden.dtype)


def pairwise(problem: Pairwise) -> Tensor:
    q, pos, neg = wide(problem.q), wide(problem.pos), wide(problem.neg)
    difference = torch.einsum("bhd,bd->bh", neg, q) - (q * pos).sum(1, keepdim=True)
    return functional.softplus(problem.scale * difference).mean()


def pairwise_autocast(problem: Pairwise) -> Tensor:
    q, pos, neg = problem.q, problem.pos, problem.neg
    difference = torch.einsum("bhd,bd->bh", neg, q) - (q * pos).sum(1, keepdim=True)
    return functional.softplus(problem.scale * difference).mean()


def step(problem: Step) -> Tensor:
    rows = wide(pool(problem.pool))
    return _in_batch(problem.scale * (rows[: problem.queries] @ rows[problem.queries :].T))


def step_autocast(problem: Step) -> Tensor:
    rows = pool(problem.pool)
    return _in_batch(problem.scale * (rows[: problem.queries] @ rows[problem.queries :].T))


def _in_batch(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, torch.arange(logits.shape[0], device=logits.device))
