"""The softmax between the products of `contrastive_loss` in plain torch: any device, float64 capable, and slower.

Same functions as softmax_gradient_cpu and softmax_gradient_triton; csrc/softmax_gradient.h says what they compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ance_fast.ops.contrastive_problem import Problem, expand
from ance_fast.ops.loss_wiring import softplus


def gradient(logits: Tensor, scale: Tensor, problem: Problem, kept: Tensor, losses: Tensor, need: bool) -> Tensor:
    """Write the losses [R] of a block of rows with all their columns, and P - onehot [R, N] over its logits if needed.

    kept: [2, targets of the whole batch], where the block leaves its targets' scaled logits and their slopes.
    """
    top, factor = torch.empty_like(losses), torch.empty_like(losses)
    statistics(logits, scale, problem, kept, top, factor, 0, True)
    finish(top, factor, problem, kept, losses)
    if need:
        # The logits are scaled and masked by now, so only the targets are left to fill in.
        _probabilities(logits, top, factor)
        owner, columns = _targets(problem)
        logits.index_put_((owner, columns), -kept[1, _own(problem)], accumulate=True)
    return logits


def statistics(
    logits: Tensor,
    scale: Tensor,
    problem: Problem,
    kept: Tensor,
    top: Tensor,
    total: Tensor,
    column_begin: int,
    fresh: bool,
) -> None:
    """Take a tile of columns, which is used up, into the block's statistics: largest [R] and sum of exp(s - largest)
    [R] of the negatives seen so far, and the scaled logits of its targets. `fresh`: it is the first tile."""
    rows, width = logits.shape
    logits.mul_(scale)
    owner, columns = _targets(problem)
    columns = columns - column_begin
    inside = (columns >= 0) & (columns < width)
    targets = kept[0, _own(problem)]
    if fresh:
        targets.fill_(torch.nan)
    targets[inside] = logits[owner[inside], columns[inside]]
    _hide(logits, problem, column_begin)
    high = logits.amax(1) if width else logits.new_full((rows,), -torch.inf)
    merge_statistics(top, total, high, (logits - _finite(high)[:, None]).exp_().sum(1), fresh)


def merge_statistics(top: Tensor, total: Tensor, high: Tensor, add: Tensor, fresh: bool) -> None:
    """Log-sum-exp of what (top, total) and (high, add) stand for, in place of the former."""
    if not fresh:
        highest = torch.maximum(top, high)
        shift = _finite(highest)
        high, add = highest, total * (top - shift).exp() + add * (high - shift).exp()
    top.copy_(high)
    total.copy_(add)


def finish(top: Tensor, total: Tensor, problem: Problem, kept: Tensor, losses: Tensor) -> None:
    """From a block's statistics: losses [R], slopes of its targets, and over `total` the factor from exp(s - top) to
    the gradient of a negative; the same small work for every backend."""
    offsets = problem.targets[0]
    targets, slopes = kept[:, _own(problem)]
    owner = expand(offsets, targets.shape[0])
    share = 1 / offsets.diff().clamp(min=1).to(top.dtype)[owner]
    # -log(exp(t) / (exp(t) + exp(rest))), t the target's logit and rest that of all negatives together
    margin = (top[owner] - targets) + total.log()[owner]
    losses.zero_().index_add_(0, owner, softplus(margin) * share)
    slopes.copy_(torch.sigmoid(margin) * share)
    weight = top.new_zeros(top.shape).index_add_(0, owner, slopes)
    total.copy_(torch.where(total == 0, 0, weight / total))


def tile_gradient(
    logits: Tensor, scale: Tensor, problem: Problem, kept: Tensor, top: Tensor, factor: Tensor, column_begin: int
) -> Tensor:
    """P - onehot over a tile of logits computed anew."""
    width = logits.shape[1]
    logits.mul_(scale)
    _hide(logits, problem, column_begin)
    _probabilities(logits, top, factor)
    owner, columns = _targets(problem)
    columns = columns - column_begin
    inside = (columns >= 0) & (columns < width)
    slopes = kept[1, _own(problem)]
    return logits.index_put_((owner[inside], columns[inside]), -slopes[inside], accumulate=True)


def _finite(top: Tensor) -> Tensor:
    return torch.where(torch.isneginf(top), 0, top)


def _probabilities(logits: Tensor, top: Tensor, factor: Tensor) -> None:
    logits.sub_(_finite(top)[:, None]).exp_().mul_(factor[:, None])


def _own(problem: Problem) -> slice:
    """Where the block's targets stand among those of the whole batch."""
    offsets = problem.targets[0]
    return slice(int(offsets[0]), int(offsets[-1]))


def _targets(problem: Problem) -> tuple[Tensor, Tensor]:
    """Row and column of each target of a block."""
    offsets, columns = problem.targets
    own = columns[_own(problem)]
    return expand(offsets, own.shape[0]), own


def _hide(logits: Tensor, problem: Problem, column_begin: int) -> None:
    """Write -inf over masked columns and targets."""
    rows, width = logits.shape
    pairs = [_targets(problem)]
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
