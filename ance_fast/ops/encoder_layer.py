"""What surrounds the matrix products of a transformer layer at inference: three kernels, in place, without gradients.

On the CPU (fp32) they are C++ (csrc/encoder_kernels.h); the references beside them are plain torch on any device.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ance_fast.ops.dispatch import dispatch

OP = "encoder_layer"


def bias_gelu_(x: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """x [T, F] <- gelu(x + bias), the exact (erf) form. Returns x."""
    if _is_cpp(x, backend):
        _engine().bias_gelu(x.numpy(), _host(bias), threads=torch.get_num_threads())
        return x
    return x.copy_(bias_gelu_reference(x, bias))


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def bias_residual_layernorm_(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float, *, backend: str = "auto"
) -> Tensor:
    """x [T, D] <- layernorm(x + bias + residual) * weight + shift. Returns x."""
    if _is_cpp(x, backend):
        _engine().bias_residual_layernorm(
            x.numpy(),
            _host(bias),
            _host(residual),
            _host(weight),
            _host(shift),
            eps=eps,
            threads=torch.get_num_threads(),
        )
        return x
    return x.copy_(bias_residual_layernorm_reference(x, bias, residual, weight, shift, eps))


def bias_residual_layernorm_reference(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> Tensor:
    return F.layer_norm(x + bias + residual, (x.shape[1],), weight, shift, eps)


def packed_self_attention(
    qkv: Tensor, bias: Tensor, cu_seqlens: Tensor, heads: int, *, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Attention of every sequence to itself: qkv [T, 3 D] and its bias [3 D] -> [T, D] (into `out` if given).

    `cu_seqlens` int32 [B + 1]; D / heads must be a multiple of 16 for the C++ kernel.
    """
    width = qkv.shape[1] // 3
    if width // heads % 16 == 0 and _is_cpp(qkv, backend):
        result = torch.empty(len(qkv), width) if out is None else out
        _engine().packed_attention(
            qkv.numpy(),
            _host(bias),
            _host(cu_seqlens),
            heads=heads,
            scale=float(np.sqrt(heads / width)),
            out=result.numpy(),
            threads=torch.get_num_threads(),
        )
        return result
    result = packed_self_attention_reference(qkv, bias, cu_seqlens, heads)
    return result if out is None else out.copy_(result)


def packed_self_attention_reference(qkv: Tensor, bias: Tensor, cu_seqlens: Tensor, heads: int) -> Tensor:
    q, k, v = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in (qkv + bias).chunk(3, dim=1))
    pieces = [torch.zeros(0, qkv.shape[1] // 3, dtype=qkv.dtype, device=qkv.device)]
    edges = cu_seqlens.tolist()
    for begin, end in itertools.pairwise(edges):
        part = slice(begin, end)
        weights = torch.softmax(q[:, part] @ k[:, part].transpose(1, 2) / (q.shape[2] ** 0.5), dim=-1)
        pieces.append((weights @ v[:, part]).transpose(0, 1).flatten(1))
    return torch.cat(pieces)


def _is_cpp(x: Tensor, backend: str) -> bool:
    return dispatch(OP, x.device, x.dtype, backend) == "cpp"


def _engine():  # type: ignore[no-untyped-def]
    from ance_fast import _C

    return _C


def _host(x: Tensor) -> np.ndarray:
    return x.detach().numpy()
