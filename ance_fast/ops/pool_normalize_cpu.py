"""The CPU custom ops of `pool_normalize`: fake kernels, autograd, and the calls into the C++ kernel.

The kernel is fp32; other dtypes are converted on the way in and out.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ance_fast.errors import ConfigError


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.detach().float().contiguous().numpy()


def compute_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mode: str,
    norm: str,
    eps: float,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result, and for the backward pass (empty where unused): pooled [B, D], stats [B, 2], argmax int32 [B, D]."""
    from ance_fast import _C

    out, pooled, stats, argmax = _outputs(hidden, cu_seqlens, mode, norm, torch.float32, save)
    try:
        _C.pool_normalize_forward(
            _array(hidden),
            cu_seqlens.contiguous().numpy(),
            mode=mode,
            norm=norm,
            weight=None if weight is None else _array(weight),
            bias=None if bias is None else _array(bias),
            eps=eps,
            out=out.numpy(),
            pooled=pooled.numpy() if pooled.shape[0] == out.shape[0] else None,
            stats=stats.numpy() if stats.shape[0] == out.shape[0] else None,
            argmax=argmax.numpy() if mode == "max" else None,
            threads=torch.get_num_threads(),
        )
    except ValueError as error:  # offsets that do not rise from 0 to T: the kernel looks at them anyway
        raise ConfigError(str(error)) from error
    return out.to(out_dtype), pooled, stats, argmax


pool_forward = torch.library.custom_op("ance_fast::pool_normalize", mutates_args=(), device_types="cpu")(compute_pool)


@pool_forward.register_fake
def _(
    hidden: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mode: str,
    norm: str,
    eps: float,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(hidden, cu_seqlens, mode, norm, out_dtype, save)


def _outputs(
    hidden: Tensor, cu_seqlens: Tensor, mode: str, norm: str, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sequences, dim = cu_seqlens.shape[0] - 1, hidden.shape[1]
    kept = sequences if save and norm != "none" else 0
    return (
        hidden.new_empty((sequences, dim), dtype=dtype),
        hidden.new_empty((kept, dim), dtype=torch.float32),
        hidden.new_empty((kept, 2), dtype=torch.float32),
        hidden.new_empty((sequences if mode == "max" else 0, dim), dtype=torch.int32),
    )


@torch.library.custom_op("ance_fast::pool_normalize_backward", mutates_args=(), device_types="cpu")
def pool_backward(
    grad_out: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    out: Tensor,
    pooled: Tensor,
    stats: Tensor,
    argmax: Tensor,
    mode: str,
    norm: str,
    eps: float,
    tokens: int,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 gradients of hidden [T, D], and of weight and bias [D] (empty unless with_parameters).

    `out` only ties the gradients to the inputs of the op: without it a double backward would silently leave out their
    second derivative instead of raising. It is kept because hidden, T rows instead of B, need not be.
    """
    from ance_fast import _C

    dim = grad_out.shape[1]
    grad_hidden = torch.empty((tokens, dim), dtype=torch.float32)
    grad_weight = torch.empty(dim if with_parameters else 0, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    _C.pool_normalize_backward(
        _array(grad_out),
        cu_seqlens.contiguous().numpy(),
        mode=mode,
        norm=norm,
        weight=None if weight is None else _array(weight),
        pooled=None if norm == "none" else _array(pooled),
        stats=None if norm == "none" else _array(stats),
        argmax=argmax.numpy() if mode == "max" else None,
        eps=eps,
        grad_hidden=grad_hidden.numpy(),
        grad_weight=grad_weight.numpy() if with_parameters else None,
        grad_bias=grad_bias.numpy() if with_parameters else None,
        threads=torch.get_num_threads(),
    )
    return grad_hidden, grad_weight, grad_bias


@pool_backward.register_fake
def _(
    grad_out: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    out: Tensor,
    pooled: Tensor,
    stats: Tensor,
    argmax: Tensor,
    mode: str,
    norm: str,
    eps: float,
    tokens: int,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dim = grad_out.shape[1]
    parameters = dim if with_parameters else 0
    return (
        grad_out.new_empty((tokens, dim), dtype=torch.float32),
        grad_out.new_empty(parameters, dtype=torch.float32),
        grad_out.new_empty(parameters, dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, cu_seqlens, weight, bias, mode, norm, eps, _, _ = inputs
    out, pooled, stats, argmax = output
    ctx.mark_non_differentiable(pooled, stats, argmax)
    ctx.save_for_backward(cu_seqlens, weight, out, pooled, stats, argmax)
    ctx.settings = (mode, norm, eps)
    ctx.tokens, ctx.dtype = hidden.shape[0], hidden.dtype
    ctx.weight_dtype = None if weight is None else weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _differentiate(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    cu_seqlens, weight, out, pooled, stats, argmax = ctx.saved_tensors
    with_parameters = ctx.weight_dtype is not None or ctx.bias_dtype is not None
    grad_hidden, grad_weight, grad_bias = pool_backward(
        grad_out, cu_seqlens, weight, out, pooled, stats, argmax, *ctx.settings, ctx.tokens, with_parameters
    )
    return (
        grad_hidden.to(ctx.dtype),
        None,
        None if ctx.weight_dtype is None else grad_weight.to(ctx.weight_dtype),
        None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype),
        *(None,) * 5,
    )


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError("pool_normalize is differentiable once; use backend='reference' for higher derivatives")


pool_forward.register_autograd(_differentiate, setup_context=_setup)
pool_backward.register_autograd(_no_second_derivative)
