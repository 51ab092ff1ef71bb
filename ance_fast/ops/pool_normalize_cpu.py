"""`pool_normalize` on the CPU: the calls into csrc/pool_normalize.h.

The kernel is fp32; other dtypes are converted on the way in and out.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.ops.pool_normalize_wiring import outputs


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
    out, pooled, stats, argmax = outputs(hidden, cu_seqlens, mode, norm, torch.float32, save)
    kept = pooled.shape[0] == out.shape[0]
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
            pooled=pooled.numpy() if kept else None,
            stats=stats.numpy() if kept else None,
            argmax=argmax.numpy() if mode == "max" else None,
            threads=torch.get_num_threads(),
        )
    except ValueError as error:  # offsets that do not rise from 0 to T: the kernel looks at them anyway
        raise ConfigError(str(error)) from error
    return out.to(out_dtype), pooled, stats, argmax


def compute_pool_backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients: of hidden [T, D] in `dtype`, and fp32 of weight and bias [D] (empty unless with_parameters)."""
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
    return grad_hidden.to(dtype), grad_weight, grad_bias


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.detach().float().contiguous().numpy()
