"""`contrastive_loss` over the ranks of a process group: every rank's passages are candidates for every rank's queries.

Passages are gathered, each rank computes the rows of its own queries, and the gradients of foreign passages are summed
onto the rank that owns them; in the other direction the same happens with queries and passages exchanged. A rank holds
all passages, O(N D) over all ranks, but never more logits than a chunk of its own rows.

DistributedDataParallel averages parameter gradients over the W ranks. The loss of a rank is therefore W times its share
of the global mean: the averaged gradients are those of one process with the whole batch, also where ranks hold batches
of different size, and the mean of the ranks' losses is its loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.contrastive_chunks import chunked_loss, operand_dtype
from ance_fast.ops.contrastive_problem import Ragged, build_problem, transpose
from ance_fast.ops.loss_wiring import accumulate_dtype, differentiate_once, without_autocast, workspace_gain

Checked = TypeVar("Checked")


def check_together(check: Callable[[], Checked], q: Tensor, group: dist.ProcessGroup) -> Checked:
    """What `check` returns. If it raises ConfigError, the other ranks, which are about to exchange sizes, learn so."""
    try:
        return check()
    except ConfigError:
        _exchange([1, *[0] * (_FACTS - 1)], q.device if isinstance(q, Tensor) else torch.device("cpu"), group)
        raise


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
    ConfigError, on every rank, if doc_ids or positives are given on some ranks only, if widths or dtypes differ, or if
    `check_together` failed on another rank.
    """
    recording = torch.is_grad_enabled()
    need_scale = recording and scale.requires_grad
    need_q = need_scale or (recording and q.requires_grad)  # the gradient of scale is read off that of q
    need_p = recording and p.requires_grad
    call = _Call(group, backend, chunk_rows, bidirectional, need_q, need_p, need_scale)
    sizes = _exchange_sizes(q, p, targets, doc_ids, positives, call)
    return _run(q, p, scale, targets, doc_ids, positives, call, sizes)


@dataclass(frozen=True)
class _Call:
    """The options of one call."""

    group: dist.ProcessGroup
    backend: str
    chunk_rows: int
    bidirectional: bool
    need_q: bool
    need_p: bool
    need_scale: bool


@dataclass(frozen=True)
class _Sizes:
    """How many of each every rank has, one rank after the other."""

    rows: list[int]
    columns: list[int]
    targets: list[int]
    positives: list[int]


def _compute(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    targets: Ragged,
    doc_ids: Tensor | None,
    positives: Ragged | None,
    call: _Call,
    sizes: _Sizes,
) -> tuple[Tensor, ...]:
    """Loss, step, and the gradients as `contrastive_loss` has them."""
    group, dtype, read_as = call.group, accumulate_dtype(q), operand_dtype(q, call.backend)
    world, gain = group.size(), workspace_gain(read_as)
    loop = functools.partial(chunked_loss, backend=call.backend, chunk_rows=call.chunk_rows)
    first_column = sum(sizes.columns[: group.rank()])
    with without_autocast(q.device):
        factor, own_q, all_p = scale.to(dtype), q.to(read_as), _gather(p, sizes.columns, group).to(read_as)
        documents = None if doc_ids is None else _gather(doc_ids, sizes.columns, group)
        targets = (targets[0], targets[1] + first_column)
        problem = build_problem(targets, documents, *(positives or (None, None)))
        losses, grad_q, grad_all_p = loop(own_q, all_p, factor, problem, need_q=call.need_q, need_p=call.need_p)
        rows = max(sum(sizes.rows), 1)
        loss = losses.sum() * (world / rows)
        weight = world / (rows * gain)
        grad_p = _sum_onto_owner(grad_all_p, sizes.columns, group) if call.need_p else grad_all_p
        grad_scale = scale.new_empty(0, dtype=dtype)
        if call.need_scale:
            grad_scale = _product(q, grad_q) * weight
        if call.bidirectional:
            everyone = _gather_lists(targets, sizes.rows, sizes.targets, group)
            known = (None, None) if positives is None else _gather_lists(positives, sizes.rows, sizes.positives, group)
            anchors, count, other = transpose(build_problem(everyone, documents, *known), all_p.shape[0])
            # Those anchors that are columns of this rank; how many is known on the device alone.
            bounds = torch.tensor([first_column, first_column + p.shape[0]], device=anchors.device)
            low, high = torch.searchsorted(anchors, bounds).tolist()
            block, own = all_p[anchors[low:high]], anchors[low:high] - first_column
            all_q = _gather(q, sizes.rows, group).to(read_as)
            losses, grad_block, grad_all_q = loop(
                block,
                all_q,
                factor,
                other.rows(low, high),
                need_q=call.need_p or call.need_scale,
                need_p=call.need_q,
            )
            count = count.clamp(min=1).to(dtype)
            loss = (loss + losses.sum() * (world / count)) / 2
            weight /= 2
            ratio = rows / count
            if call.need_scale:
                grad_scale = (grad_scale + _product(block, grad_block) * (world / (gain * count))) / 2
            if call.need_q:
                grad_q += _sum_onto_owner(grad_all_q, sizes.rows, group).mul_(ratio)
            if call.need_p:
                grad_p.index_add_(0, own, grad_block.mul_(ratio))
        # Every rank holds the same scale, whose gradient DistributedDataParallel averages like any parameter's.
        return loss, factor * weight, grad_q, grad_p, grad_scale.to(scale.device)


_run = differentiate_once(_compute, gradients=3, stepped=2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.to(b.dtype).flatten(), b.flatten())


def _gather(rows: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """All ranks' rows, which may differ in number, one rank after the other."""
    padded = _pad(rows, max(counts))
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _gather_lists(lists: Ragged, rows: list[int], values: list[int], group: dist.ProcessGroup) -> Ragged:
    sizes = _gather(lists[0].diff(), rows, group)
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), _gather(lists[1], values, group)


def _sum_onto_owner(gradient: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """Each rank's own rows of the sum over the ranks."""
    most = max(counts)
    own = gradient.new_empty((most, *gradient.shape[1:]))
    dist.reduce_scatter(own, [_pad(part, most) for part in gradient.split(counts)], group=group)
    return own[: counts[group.rank()]]


def _pad(rows: Tensor, count: int) -> Tensor:
    if rows.shape[0] == count:
        return rows.contiguous()
    padded = rows.new_zeros((count, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    return padded


def _exchange_sizes(
    q: Tensor, p: Tensor, targets: Ragged, doc_ids: Tensor | None, positives: Ragged | None, call: _Call
) -> _Sizes:
    """What memory each rank's part takes: the one thing that the host waits for in a call with one direction.

    Ranks that differ in anything else, or stop here alone, would wait for each other for ever.
    """
    flags = (doc_ids is not None, positives is not None, call.bidirectional, call.need_q, call.need_p, call.need_scale)
    sizes = (q.shape[0], p.shape[0], targets[1].shape[0], 0 if positives is None else positives[1].shape[0])
    facts = _exchange([0, *sizes, q.shape[1], _DTYPES.index(q.dtype), *flags], q.device, call.group)
    refused = [str(rank) for rank, fact in enumerate(facts) if fact[0]]
    if refused:
        raise ConfigError(f"the arguments of rank {', '.join(refused)} are wrong; the error there says how")
    if any(other[5:] != facts[0][5:] for other in facts):
        names = ("doc_ids", "positives", "bidirectional", "gradient of q", "gradient of p", "gradient of scale")
        described = [
            f"rank {rank}: width {width}, {_DTYPES[kind]}, "
            + ", ".join(f"{name} {'yes' if flag else 'no'}" for name, flag in zip(names, others, strict=True))
            for rank, (width, kind, *others) in enumerate(fact[5:] for fact in facts)
        ]
        raise ConfigError("the ranks of process_group must call contrastive_loss alike; " + "; ".join(described))
    rows, columns, listed, known = (list(column) for column in zip(*(fact[1:5] for fact in facts), strict=True))
    return _Sizes(rows, columns, listed, known)


def _exchange(own: Sequence[int], device: torch.device, group: dist.ProcessGroup) -> list[list[int]]:
    """The `_FACTS` numbers of every rank."""
    mine = torch.tensor(own, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group=group)
    facts: list[list[int]] = torch.stack(everyone).tolist()
    return facts


_FACTS = 13
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
