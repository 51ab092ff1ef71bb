"""`contrastive_loss` over the ranks of a process group: every rank's passages are candidates for every rank's queries.

Embeddings and lists are gathered, each rank computes the rows of its own queries (and, in the other direction, of its
own passages), and the gradients of foreign embeddings are summed onto the rank that owns them. A rank holds all
embeddings, O(N D) over all ranks, but never more logits than a chunk of its own rows.

DistributedDataParallel averages parameter gradients over the W ranks. The loss of a rank is therefore W times its share
of the global mean: the averaged gradients are those of one process with the whole batch, also where ranks hold batches
of different size, and the mean of the ranks' losses is its loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.contrastive_chunks import chunked_loss
from ance_fast.ops.contrastive_problem import Ragged, build_problem, check_values, transpose
from ance_fast.ops.loss_wiring import accumulate_dtype, differentiate_once, without_autocast


def group_loss(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    targets: Ragged,
    doc_ids: Tensor | None,
    positives: Ragged | None,
    *,
    group: dist.ProcessGroup,
    backend: str,
    chunk_rows: int,
    bidirectional: bool,
) -> Tensor:
    """The rank's loss. Arguments describe its own rows and columns; targets are columns of its own p.

    Collective: every rank of the group calls it, with the same options and the same tensors requiring gradients. Raises
    ConfigError, on every rank, if doc_ids or positives are given on some ranks only or widths or dtypes differ.
    """
    check_values(targets, positives or (None, None), p.shape[0])
    _check_alike(q, p, scale, doc_ids, positives, bidirectional, group)
    need = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, p, scale))
    return _run(q, p, scale, targets, doc_ids, positives, group, (backend, chunk_rows, bidirectional, need))


@dataclass(frozen=True)
class _Gathered:
    """Rows of every rank, one rank after the other, and where this rank's are."""

    values: Tensor
    begin: int
    end: int


def _compute(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    targets: Ragged,
    doc_ids: Tensor | None,
    positives: Ragged | None,
    group: dist.ProcessGroup,
    options: tuple[str, int, bool, bool],
) -> tuple[Tensor, ...]:
    backend, chunk_rows, bidirectional, need = options
    dtype = accumulate_dtype(q)
    with without_autocast(q.device):
        factor = scale.to(dtype)
        queries, passages = _gather(q.to(dtype), group), _gather(p.to(dtype), group)
        everyone = _gather_lists((targets[0], targets[1] + passages.begin), group)
        documents = None if doc_ids is None else _gather(doc_ids, group).values
        known = (None, None) if positives is None else _gather_lists(positives, group)
        problem = build_problem(everyone, documents, *known)
        mine = slice(queries.begin, queries.end)
        losses, own_q, all_p = chunked_loss(
            queries.values[mine],
            passages.values,
            factor,
            problem.rows(queries.begin, queries.end),
            backend=backend,
            chunk_rows=chunk_rows,
            need_q=need,
            need_p=need,
        )
        weight = group.size() / max(queries.values.shape[0], 1)
        loss = losses.sum() * weight
        grad_q, grad_p = torch.zeros_like(queries.values) if need else own_q, all_p
        grad_scale = scale.new_empty(0, dtype=dtype)
        if need:
            grad_q[mine] = own_q
            grad_scale = _product(queries.values[mine], own_q) * weight
            grad_q *= weight
            grad_p *= weight
        if bidirectional:
            anchors, other = transpose(problem)
            owned = torch.searchsorted(anchors, torch.tensor([passages.begin, passages.end], device=anchors.device))
            low, high = owned.tolist()
            block = passages.values[anchors[low:high]]
            losses, own_p, all_q = chunked_loss(
                block,
                queries.values,
                factor,
                other.rows(low, high),
                backend=backend,
                chunk_rows=chunk_rows,
                need_q=need,
                need_p=need,
            )
            weight = group.size() / max(anchors.shape[0], 1)
            loss = (loss + losses.sum() * weight) / 2
            if need:
                grad_scale = (grad_scale + _product(block, own_p) * weight) / 2
                grad_q = grad_q.add_(all_q, alpha=weight).div_(2)
                grad_p = grad_p.index_add_(0, anchors[low:high], own_p, alpha=weight).div_(2)
        if not need:
            return loss, own_q, all_p, grad_scale
        # Every rank holds the same scale, whose gradient DistributedDataParallel averages like any parameter's.
        return (
            loss,
            _sum_onto_owner(grad_q * factor, queries, group),
            _sum_onto_owner(grad_p * factor, passages, group),
            grad_scale.to(scale.device),
        )


_run = differentiate_once(_compute, gradients=3)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def _gather(rows: Tensor, group: dist.ProcessGroup) -> _Gathered:
    """All ranks' rows, which may differ in number."""
    counts = _counts(rows.shape[0], rows.device, group)
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    begin = sum(counts[: group.rank()])
    values = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return _Gathered(values, begin, begin + rows.shape[0])


def _gather_lists(lists: Ragged, group: dist.ProcessGroup) -> Ragged:
    sizes = _gather(lists[0].diff(), group).values
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return offsets, _gather(lists[1], group).values


def _counts(count: int, device: torch.device, group: dist.ProcessGroup) -> list[int]:
    own = torch.tensor([count], device=device)
    counts = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(counts, own, group=group)
    return [int(c) for c in counts]


def _sum_onto_owner(gradient: Tensor, rows: _Gathered, group: dist.ProcessGroup) -> Tensor:
    # Ranks may own different numbers of rows, which a reduce-scatter does not allow.
    dist.all_reduce(gradient, group=group)
    return gradient[rows.begin : rows.end].clone()


def _check_alike(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    doc_ids: Tensor | None,
    positives: Ragged | None,
    bidirectional: bool,
    group: dist.ProcessGroup,
) -> None:
    """Ranks that differ in any of this would wait for each other for ever, or exchange what does not fit."""
    need = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, p, scale))
    flags = (doc_ids is not None, positives is not None, bidirectional, need)
    own = torch.tensor([q.shape[1], _DTYPES.index(q.dtype), *flags], dtype=torch.int64, device=q.device)
    everyone = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(everyone, own, group=group)
    facts = [other.tolist() for other in everyone]
    if any(other != facts[0] for other in facts):
        names = ("doc_ids", "positives", "bidirectional", "gradients")
        described = [
            f"rank {rank}: width {width}, {_DTYPES[kind]}, "
            + ", ".join(f"{name} {'yes' if flag else 'no'}" for name, flag in zip(names, others, strict=True))
            for rank, (width, kind, *others) in enumerate(facts)
        ]
        raise ConfigError("the ranks of process_group must call contrastive_loss alike; " + "; ".join(described))


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
