"""The softmax between the products of `contrastive_loss` in plain torch: any device, float64 capable, and slower.

Same functions as softmax_gradient_cpu and softmax_gradient_triton; csrc/softmax_gradient.h says what they compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ance_fast.ops.contrastive_problem import Problem, expand
from ance_fast.ops.loss_wiring import softplus


def gradient(logits: Tensor, scale: Tensor, problem: Problem, need: bool) -> tuple[Tensor, Tensor]:
    """Losses [R] of a block of rows with all their columns, and P - onehot [R, N] (in place) if needed."""
    rows = logits.shape[0]
    top, total, target_logits = statistics(logits, scale, problem, 0)
    losses, factor, slopes = finish(top, total, target_logits, problem)
    if need:
        # The logits are scaled and masked by now, so only the targets are left to fill in.
        logits.sub_(torch.where(torch.isneginf(top), 0, top)[:, None]).exp_().mul_(factor[:, None])
        owner, columns = _targets(problem, rows)
        logits.index_put_((owner, columns), -slopes, accumulate=True)
    return losses, logits


def statistics(logits: Tensor, scale: Tensor, problem: Problem, column_begin: int) -> tuple[Tensor, Tensor, Tensor]:
    """(largest, sum of exp(s - largest)) [R] over the negatives of a tile of columns, which is used up, and the scaled
    logits of the block's targets, NaN where a target lies in another tile."""
    rows, width = logits.shape
    logits.mul_(scale)
    owner, columns = _targets(problem, rows)
    columns = columns - column_begin
    inside = (columns >= 0) & (columns < width)
    target_logits = logits.new_full(columns.shape, torch.nan)
    target_logits[inside] = logits[owner[inside], columns[inside]]
    _hide(logits, problem, column_begin)
    top = logits.amax(1) if width else logits.new_full((rows,), -torch.inf)
    total = (logits - torch.where(torch.isneginf(top), 0, top)[:, None]).exp_().sum(1)
    return top, total, target_logits


def tile_gradient(
    logits: Tensor, scale: Tensor, problem: Problem, column_begin: int, top: Tensor, factor: Tensor, slopes: Tensor
) -> Tensor:
    """P - onehot over a tile of logits computed anew."""
    rows, width = logits.shape
    logits.mul_(scale)
    _hide(logits, problem, column_begin)
    logits.sub_(torch.where(torch.isneginf(top), 0, top)[:, None]).exp_().mul_(factor[:, None])
    owner, columns = _targets(problem, rows)
    columns = columns - column_begin
    inside = (columns >= 0) & (columns < width)
    return logits.index_put_((owner[inside], columns[inside]), -slopes[inside], accumulate=True)


def finish(top: Tensor, total: Tensor, target_logits: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """From a block's statistics: losses [R], factor [R], slopes [targets]; the same small work for every backend."""
    offsets = problem.targets[0]
    owner = expand(offsets, target_logits.shape[0])
    share = 1 / offsets.diff().clamp(min=1).to(top.dtype)[owner]
    # -log(exp(t) / (exp(t) + exp(rest))), t the target's logit and rest that of all negatives together
    margin = (top[owner] - target_logits) + total.log()[owner]
    losses = top.new_zeros(top.shape).index_add_(0, owner, softplus(margin) * share)
    slopes = torch.sigmoid(margin) * share
    weight = top.new_zeros(top.shape).index_add_(0, owner, slopes)
    return losses, torch.where(total == 0, 0, weight / total), slopes


def _targets(problem: Problem, rows: int) -> tuple[Tensor, Tensor]:
    """Row and column of each target of a block."""
    offsets, columns = problem.targets
    low, high = int(offsets[0]), int(offsets[rows])
    return expand(offsets, high - low), columns[low:high]


def _hide(logits: Tensor, problem: Problem, column_begin: int) -> None:
    """Write -inf over masked columns and targets."""
    rows, width = logits.shape
    pairs = [_targets(problem, rows)]
    if problem.masks is not None:
        (offsets, keys), (key_offsets, holders) = problem.masks.hidden, problem.masks.holders
        low, high = int(offsets[0]), int(offsets[rows])
        owner, keys = expand(offsets, high - low), keys[low:high]
        sizes = key_offsets.diff()[keys]
        ends = sizes.cumsum(0)
        total = int(ends[-1]) if high > low else 0
        of = torch.repeat_interleave(torch.arange(high - low, device=keys.device), sizes, output_size=total)
        within = torch.arange(total, device=keys.device) - (ends - sizes)[of]
        pairs.append((owner[of], holders[key_offsets[keys[of]] + within]))
    for owner, columns in pairs:
        columns = columns - column_begin
        inside = (columns >= 0) & (columns < width)
        logits[owner[inside], columns[inside]] = -torch.inf
