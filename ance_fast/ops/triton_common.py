"""What the Triton kernels share: launching on a tensor's device, and the loss of one comparison."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are Triton's dialect of Python, where a parameter has no Python type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus_and_slope(margin):
    """log(1 + exp(margin)) and its derivative in fp32, both accurate relative to their size; 0 and 0 at -inf."""
    small = tl.exp2(-tl.abs(margin) * LOG2E)
    # log(1 + small) = 2 atanh(small / (2 + small)). A logarithm of 1 + small would lose what that sum rounds away, and
    # the losses of well-separated rows with it. At most 1/3 is squared, so the terms left out are below 1e-8.
    ratio = small / (2 + small)
    square = ratio * ratio
    series = ratio * 0 + 1.0 / 15
    for odd in tl.static_range(13, 0, -2):
        series = series * square + 1.0 / odd
    softplus = tl.maximum(margin, 0.0, propagate_nan=tl.PropagateNan.ALL) + 2 * ratio * series
    return softplus, tl.where(margin >= 0, 1.0, small) / (1 + small)


@triton.jit
def scale_value(scale, IN_MEMORY: tl.constexpr):
    """fp32 scale from what `scale_arguments` gives."""
    return tl.load(scale).to(tl.float32) if IN_MEMORY else scale


def on_device_of(tensor: Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device, which need not be the tensor's; nothing happens for a CPU tensor."""
    return torch.cuda.device_of(tensor)


def scale_arguments(scale: Tensor | float, like: Tensor) -> tuple[Tensor | float, bool]:
    """What to hand a kernel as scale, and whether it is in memory.

    A number or a CPU tensor beside CUDA tensors travels by value: a copy would wait for the device.
    """
    if not isinstance(scale, Tensor):
        return float(scale), False
    if scale.device == like.device:
        return scale, True
    return (scale.item(), False) if scale.device.type == "cpu" else (scale.to(like.device), True)
