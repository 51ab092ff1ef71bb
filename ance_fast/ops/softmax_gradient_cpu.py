"""The softmax between the products of `contrastive_loss`: the calls into csrc/softmax_gradient.h."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ance_fast import _C
from ance_fast.ops.contrastive_problem import Problem
from ance_fast.ops.softmax_gradient_torch import finish, merge_statistics

__all__ = ["finish", "gradient", "statistics", "tile_gradient"]


def gradient(logits: Tensor, scale: Tensor, problem: Problem, kept: Tensor, losses: Tensor, need: bool) -> Tensor:
    """Write the losses [R] of a block of rows with all their columns, and P - onehot [R, N] over its logits if needed.

    `kept` is for the other backends: a row's targets stay in the kernel here.
    """
    _C.softmax_gradient(
        logits.numpy(),
        scale.item(),
        *_lists(problem),
        losses=losses.numpy(),
        gradient=need,
        threads=torch.get_num_threads(),
    )
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
    """Take a tile of columns, which is used up, into the block's statistics, as softmax_gradient_torch does."""
    high, add = torch.empty_like(top), torch.empty_like(total)
    targets = _own(kept[0], problem)
    if fresh:
        targets.fill_(torch.nan)
    _C.softmax_statistics(
        logits.numpy(),
        scale.item(),
        *_lists(problem),
        column_begin=column_begin,
        top=high.numpy(),
        sum=add.numpy(),
        target_logits=targets.numpy(),
        threads=torch.get_num_threads(),
    )
    merge_statistics(top, total, high, add, fresh)


def tile_gradient(
    logits: Tensor, scale: Tensor, problem: Problem, kept: Tensor, top: Tensor, factor: Tensor, column_begin: int
) -> Tensor:
    """P - onehot over a tile of logits computed anew."""
    _C.softmax_tile_gradient(
        logits.numpy(),
        scale.item(),
        *_lists(problem),
        column_begin=column_begin,
        top=top.numpy(),
        factor=factor.numpy(),
        slopes=_own(kept[1], problem).numpy(),
        threads=torch.get_num_threads(),
    )
    return logits


def _own(of_targets: Tensor, problem: Problem) -> Tensor:
    """The part of the block's own targets."""
    offsets = problem.targets[0]
    return of_targets[int(offsets[0]) : int(offsets[-1])]


def _lists(problem: Problem) -> list[npt.NDArray[Any] | None]:
    pairs = [problem.targets]
    pairs += [] if problem.masks is None else [problem.masks.hidden, problem.masks.holders]
    arrays: list[npt.NDArray[Any] | None] = [tensor.numpy() for pair in pairs for tensor in pair]
    return arrays + [None] * (6 - len(arrays))
