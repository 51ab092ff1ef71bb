"""The custom ops of `pool_normalize`: fake kernels, autograd, and the choice of the module that computes.

Such a module (pool_normalize_cpu, _cuda, _triton) has two functions, `compute_pool` and `compute_pool_backward`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_MODULES = {"cpp": "cpu", "cuda": "cuda", "triton": "triton"}


def run_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mode: str,
    norm: str,
    eps: float,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """[B, D]; differentiable once in hidden, weight and bias."""
    arguments = (hidden, cu_seqlens, weight, bias, mode, norm, eps, out_dtype, backend)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    # Going through the dispatcher costs several times a small kernel, which eager code need not pay.
    if torch.compiler.is_compiling() or type(hidden) not in (Tensor, torch.nn.Parameter):
        return pool_forward(*arguments, save)[0]
    if save:
        return _Eager.apply(*arguments)[0]
    return _forward(*arguments, save=False)[0]


def outputs(
    hidden: Tensor, cu_seqlens: Tensor, mode: str, norm: str, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the result [B, D] and what the backward pass reads, empty where unused: pooled [B, D] and stats [B, 2],
    fp32, and argmax int32 [B, D]."""
    sequences, dim = cu_seqlens.shape[0] - 1, hidden.shape[1]
    kept = sequences if save and norm != "none" else 0
    return (
        hidden.new_empty((sequences, dim), dtype=dtype),
        hidden.new_empty((kept, dim), dtype=torch.float32),
        hidden.new_empty((kept, 2), dtype=torch.float32),
        hidden.new_empty((sequences if mode == "max" else 0, dim), dtype=torch.int32),
    )


def _module(backend: str) -> ModuleType:
    # Imported on use: each needs something that may not be installed.
    return importlib.import_module(f"ance_fast.ops.pool_normalize_{_MODULES[backend]}")


def _forward(
    hidden: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mode: str,
    norm: str,
    eps: float,
    out_dtype: torch.dtype,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _module(backend).compute_pool(hidden, cu_seqlens, weight, bias, mode, norm, eps, out_dtype, save)


pool_forward = torch.library.custom_op("ance_fast::pool_normalize", _forward, mutates_args=())


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
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return outputs(hidden, cu_seqlens, mode, norm, out_dtype, save)


def _backward(
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
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients: of hidden [T, D] in `dtype`, and fp32 of weight and bias [D] (empty unless with_parameters).

    `out`, an output of the op, only ties the gradients to its inputs: without it a double backward would silently leave
    out their second derivative instead of raising.
    """
    return _module(backend).compute_pool_backward(
        grad_out,
        cu_seqlens,
        weight,
        out,
        pooled,
        stats,
        argmax,
        mode,
        norm,
        eps,
        tokens,
        with_parameters,
        dtype,
    )


pool_backward = torch.library.custom_op("ance_fast::pool_normalize_backward", _backward, mutates_args=())


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
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dim = grad_out.shape[1]
    parameters = dim if with_parameters else 0
    return (
        grad_out.new_empty((tokens, dim), dtype=dtype),
        grad_out.new_empty(parameters, dtype=torch.float32),
        grad_out.new_empty(parameters, dtype=torch.float32),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], saved: tuple[Tensor, ...]) -> None:
    hidden, cu_seqlens, weight, bias, mode, norm, eps, _, backend, *_ = inputs
    ctx.save_for_backward(cu_seqlens, weight, *saved)
    ctx.settings, ctx.backend = (mode, norm, eps), backend
    ctx.tokens, ctx.dtype = hidden.shape[0], hidden.dtype
    ctx.weight_dtype = None if weight is None else weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save(ctx, inputs, output)


def _differentiate(ctx: Any, grad_out: Tensor, run: Any = pool_backward) -> tuple[Tensor | None, ...]:
    cu_seqlens, weight, *saved = ctx.saved_tensors
    with_parameters = ctx.weight_dtype is not None or ctx.bias_dtype is not None
    grad_hidden, grad_weight, grad_bias = run(
        grad_out, cu_seqlens, weight, *saved, *ctx.settings, ctx.tokens, with_parameters, ctx.dtype, ctx.backend
    )
    return (
        grad_hidden,
        None,
        None if ctx.weight_dtype is None else grad_weight.to(ctx.weight_dtype),
        None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype),
    )


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError("pool_normalize is differentiable once; use backend='reference' for higher derivatives")


pool_forward.register_autograd(
    lambda ctx, grad_out, *_: (*_differentiate(ctx, grad_out), *(None,) * 6), setup_context=_setup
)
pool_backward.register_autograd(_no_second_derivative)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        out, *saved = _forward(*(*inputs, True))
        # An output that nobody can change in place, as callers may do with `out`.
        tie = out.new_empty(0)
        ctx.set_materialize_grads(False)
        _save(ctx, inputs, (tie, *saved))
        return out, tie

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 9
        run = pool_backward if torch.is_grad_enabled() else _backward
        return (*_differentiate(ctx, grad_out, run), *(None,) * 5)
