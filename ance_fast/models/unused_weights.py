"""Weights that a forward pass does not use, made known to its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *weights: Tensor) -> Tensor:
        ctx.zeros = [torch.zeros((), dtype=weight.dtype, device=weight.device) for weight in weights]
        ctx.shapes = [weight.shape for weight in weights]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        # Expanded: no memory of the weights' size.
        zeros = (zero.expand(shape) for zero, shape in zip(ctx.zeros, ctx.shapes, strict=True))
        return gradients[0], *zeros


def zero_gradients(output: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`output`, through which a backward pass adds a zero to the gradient of each of `weights`."""
    # Not `output + 0 * weight.sum()`: that reads all of the weights, and an infinite one would make it NaN.
    result: Tensor = _ZeroGradients.apply(output, *weights)
    return result
