"""What the losses share: checks of their inputs, and the autograd of ops that compute their gradient going forward.

Such an op returns (loss, gradient, gradient, ...). The gradients are private: only the loss reaches the caller. The
backward pass multiplies them by the upstream gradient, into new tensors where the graph is kept for another pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ance_fast.errors import ConfigError


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32: scores of ANCE are near 700, where a bf16 step is 4."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def workspace_gain(dtype: torch.dtype) -> float:
    """Factor on P - onehot where it is kept in `dtype`: fp16 has few bits below 6e-5, where probabilities among many
    candidates lie, and room above 1."""
    return 1024.0 if dtype == torch.float16 else 1.0


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Autocast off; entering the context costs more than a small kernel, so only where it is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


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
    return scale.reshape(()) if isinstance(scale, Tensor) else torch.scalar_tensor(scale, dtype=torch.float64)


@torch.library.custom_op("ance_fast::scaled_gradient", mutates_args=())
def scaled_gradient(factor: Tensor, gradient: Tensor, tie: Tensor, dtype: torch.dtype) -> Tensor:
    """factor (0-dim) * gradient, as a new tensor of `dtype`.

    `tie`, an output of the loss, only ties the result to its inputs: without it a double backward would find no path to
    them and silently leave out the second derivative instead of raising.
    """
    out = torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor.to(gradient.device), out=out)


@scaled_gradient.register_fake
def _(factor: Tensor, gradient: Tensor, tie: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "this loss computes its gradient in the forward pass and is differentiable once; "
        "use backend='reference' for higher derivatives"
    )


scaled_gradient.register_autograd(_no_second_derivative)


def readable(tensor: Tensor) -> bool:
    """Whether a look at values waits for nothing."""
    return tensor.device.type == "cpu"


def runs_eagerly(tensor: Tensor) -> bool:
    """Whether the op is called as plain code: without torch.compile, and on a tensor that holds values."""
    return not torch.compiler.is_compiling() and type(tensor) in (Tensor, torch.nn.Parameter)


def differentiate_once(
    compute: Callable[..., tuple[Tensor, ...]], *, gradients: int, stepped: int = 0, op: Any = None
) -> Callable[..., Tensor]:
    """Autograd for a loss that returns (loss, a gradient for each of its first `gradients` inputs or an empty tensor).

    With `stepped`, it returns (loss, step, gradients ...), and the first `stepped` gradients still lack the factor
    step, a 0-dim tensor: the backward pass multiplies them anyway.

    Returns the function to call: `compute` without the dispatcher, which costs more than a small loss, in eager mode,
    and the custom op `op`, whose autograd is registered here, under torch.compile.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], saved: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*saved)
        ctx.dtypes = [tensor.dtype for tensor in inputs[:gradients]]
        ctx.others = len(inputs) - gradients

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        save(ctx, inputs, output)

    def backward(scale: Callable[..., Tensor], ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tie, *saved = ctx.saved_tensors
        factors = [upstream] * gradients
        if stepped:
            step, *saved = saved
            factors[:stepped] = [upstream * step] * stepped
        scaled = (
            scale(factor, gradient, tie, dtype) if needed else None
            for factor, gradient, dtype, needed in zip(factors, saved, ctx.dtypes, ctx.needs_input_grad, strict=False)
        )
        return (*scaled, *(None,) * ctx.others)

    if op is not None:
        op.register_autograd(lambda ctx, upstream, *_: backward(scaled_gradient, ctx, upstream), setup_context=setup)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
            loss, *found = compute(*inputs)
            # An output that nobody can change in place, as trainers do with the loss.
            tie = loss.new_empty(0)
            ctx.set_materialize_grads(False)
            save(ctx, inputs, (tie, *found))
            return loss, tie

        @staticmethod
        def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
            if upstream is None:
                return (None,) * (gradients + ctx.others)
            return backward(_scale_once, ctx, upstream)

    def call(*inputs: Any) -> Tensor:
        if op is not None and not runs_eagerly(inputs[0]):
            return op(*inputs)[0]
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs[:gradients]):
            return Eager.apply(*inputs)[0]
        return compute(*inputs)[0]

    return call


def _scale_once(factor: Tensor, gradient: Tensor, tie: Tensor, dtype: torch.dtype) -> Tensor:
    """`scaled_gradient`, in place where no other backward pass can follow: a copy as large as q and p less."""
    if torch.is_grad_enabled() or _graph_is_kept():
        return scaled_gradient(factor, gradient, tie, dtype)
    if gradient.dtype == dtype and readable(factor) and factor.item() == 1:  # as loss.backward() begins
        return gradient
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor.to(gradient.device), out=out)


def _graph_is_kept() -> bool:
    """Whether the backward pass that runs now may run again (retain_graph=True)."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())
