"""The softmax between the products of `contrastive_loss`: the calls into csrc/softmax_gradient.h."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ance_fast import _C
from ance_fast.ops.contrastive_problem import Problem
from ance_fast.ops.softmax_gradient_torch import finish

__all__ = ["finish", "gradient", "statistics", "tile_gradient"]


def gradient(logits: Tensor, scale: Tensor, problem: Problem, need: bool) -> tuple[Tensor, Tensor]:
    """Losses [R] of a block of rows with all their columns, and P - onehot [R, N] (in place) if needed."""
    losses = logits.new_empty(logits.shape[0])
    _C.softmax_gradient(
        logits.numpy(),
        scale.item(),
        *_lists(problem),
        losses=losses.numpy(),
        gradient=need,
        threads=torch.get_num_threads(),
    )
    return losses, logits


def statistics(logits: Tensor, scale: Tensor, problem: Problem, column_begin: int) -> tuple[Tensor, Tensor, Tensor]:
    """(largest, sum of exp(s - largest)) [R] over the negatives of a tile of columns, which is used up, and the scaled
    logits of the block's targets, NaN where a target lies in another tile."""
    rows = logits.shape[0]
    top, total = logits.new_empty(rows), logits.new_empty(rows)
    offsets = problem.targets[0]
    target_logits = logits.new_full((int(offsets[-1] - offsets[0]),), torch.nan)
    _C.softmax_statistics(
        logits.numpy(),
        scale.item(),
        *_lists(problem),
        column_begin=column_begin,
        top=top.numpy(),
        sum=total.numpy(),
        target_logits=target_logits.numpy(),
        threads=torch.get_num_threads(),
    )
    return top, total, target_logits


def tile_gradient(
    logits: Tensor, scale: Tensor, problem: Problem, column_begin: int, top: Tensor, factor: Tensor, slopes: Tensor
) -> Tensor:
    """P - onehot over a tile of logits computed anew."""
    _C.softmax_tile_gradient(
        logits.numpy(),
        scale.item(),
        *_lists(problem),
        column_begin=column_begin,
        top=top.numpy(),
        factor=factor.numpy(),
        slopes=slopes.numpy(),
        threads=torch.get_num_threads(),
    )
    return logits


def _lists(problem: Problem) -> list[npt.NDArray[Any] | None]:
    pairs = [problem.targets]
    pairs += [] if problem.masks is None else [problem.masks.hidden, problem.masks.holders]
    arrays: list[npt.NDArray[Any] | None] = [tensor.numpy() for pair in pairs for tensor in pair]
    return arrays + [None] * (6 - len(arrays))
