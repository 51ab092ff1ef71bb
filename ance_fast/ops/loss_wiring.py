"""What the losses share: checks of their inputs, and the autograd of ops that compute their gradient going forward.

Such an op returns (loss, gradient, gradient, ...). The gradients are private: only the loss reaches the caller, and the
backward pass hands out new tensors, upstream * gradient, so nobody can write into what a second backward pass will
read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ance_fast.errors import ConfigError


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32: scores of ANCE are near 700, where a bf16 step is 4."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own is the identity above 20, which fp64 can see. Finite derivative at x = -inf."""
    return torch.logaddexp(x, x.new_zeros(()))


def check_embeddings(name: str, tensor: Tensor, axes: tuple[str, ...], like: Tensor | None = None) -> None:
    """Raise ConfigError unless `tensor` is floating point with these axes, and of the dtype and device of `like`."""
    if tensor.ndim != len(axes) or not tensor.dtype.is_floating_point:
        raise ConfigError(f"{name} must be floating point [{', '.join(axes)}], got {tensor.dtype} {list(tensor.shape)}")
    if like is not None and (tensor.dtype != like.dtype or tensor.device != like.device):
        raise ConfigError(
            f"{name} is {tensor.dtype} on {tensor.device}, q is {like.dtype} on {like.device}; make them equal"
        )


def check_scale(scale: float | Tensor) -> None:
    if isinstance(scale, Tensor) and (scale.numel() != 1 or not scale.dtype.is_floating_point):
        raise ConfigError(
            f"scale must be a number or a one-element float tensor, got {list(scale.shape)} {scale.dtype}"
        )


def scale_tensor(scale: float | Tensor) -> Tensor:
    """A 0-dim tensor; a number stays on the CPU, where a 0-dim factor needs no transfer."""
    return scale.reshape(()) if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64)


@torch.library.custom_op("ance_fast::scaled_gradient", mutates_args=())
def scaled_gradient(upstream: Tensor, gradient: Tensor, loss: Tensor, dtype: torch.dtype) -> Tensor:
    """upstream (0-dim) * gradient, as a new tensor of `dtype`.

    `loss` only ties the result to the inputs of the loss: without it a double backward would find no path to them and
    silently leave out the second derivative instead of raising.
    """
    return (upstream.to(gradient.device) * gradient).to(dtype)


@scaled_gradient.register_fake
def _(upstream: Tensor, gradient: Tensor, loss: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "this loss computes its gradient in the forward pass and is differentiable once; "
        "use backend='reference' for higher derivatives"
    )


scaled_gradient.register_autograd(_no_second_derivative)


def differentiate_once(op: Any, *, gradients: int) -> None:
    """Register autograd for `op` -> (loss, a gradient for each of its first `gradients` inputs or an empty tensor)."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)
        ctx.dtypes = [tensor.dtype for tensor in inputs[:gradients]]
        ctx.others = len(inputs) - gradients

    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        loss, *saved = ctx.saved_tensors
        scaled = (
            scaled_gradient(upstream, gradient, loss, dtype) if needed else None
            for gradient, dtype, needed in zip(saved, ctx.dtypes, ctx.needs_input_grad, strict=False)
        )
        return (*scaled, *(None,) * ctx.others)

    op.register_autograd(backward, setup_context=setup)
