"""What surrounds the matrix products of a transformer encoder at inference, without gradients.

On the CPU (fp32) the ops are C++ (csrc/encoder_kernels.h, csrc/packed_attention.h, csrc/cls_attention.h), on a GPU
Triton kernels (`encoder_layer_triton`) and, for attention, FlashAttention through `torch.nn.attention.varlen`. The
references beside them are plain torch on any device. Tensors are contiguous and rows are tokens, packed back to back.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ance_fast.ops.dispatch import dispatch

LAYER = "encoder_layer"
EMBEDDING = "embed_layernorm"
ATTENTION = "packed_self_attention"


def embed_layernorm(
    input_ids: Tensor,
    position_ids: Tensor,
    words: Tensor,
    positions: Tensor,
    constant: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    *,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """layernorm(words[input_ids] + positions[position_ids] + constant) * weight + shift: [T, D] (into `out` if given).

    Ids int64 or int32 [T], tables words [V, D] and positions [P, D], the others [D]. An id outside its table raises
    IndexError on the CPU; the GPU kernel, which does not wait, writes a row of NaN.
    """
    tables = (words, positions, constant, weight, shift)
    chosen = dispatch(EMBEDDING, words.device, words.dtype, backend, words.shape[1])
    if chosen in ("cpp", "triton"):
        room = words.new_empty(len(input_ids), words.shape[1]) if out is None else out
        if chosen == "cpp":
            _engine().embed_layernorm(
                _host(input_ids.long()),
                _host(position_ids.long()),
                *map(_host, tables),
                eps=eps,
                out=room.numpy(),
                threads=torch.get_num_threads(),
            )
            return room
        from ance_fast.ops import encoder_layer_triton as kernels

        return kernels.embed_layernorm(input_ids, position_ids, *tables, eps, room)
    result = embed_layernorm_reference(input_ids, position_ids, *tables, eps)
    return result if out is None else out.copy_(result)


def embed_layernorm_reference(
    input_ids: Tensor,
    position_ids: Tensor,
    words: Tensor,
    positions: Tensor,
    constant: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
) -> Tensor:
    rows = F.embedding(input_ids, words) + constant + F.embedding(position_ids, positions)
    return F.layer_norm(rows, (rows.shape[1],), weight, shift, eps)


def bias_gelu_(x: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """x [T, F] <- gelu(x + bias), the exact (erf) form. Returns x."""
    chosen = dispatch(LAYER, x.device, x.dtype, backend)
    if chosen == "cpp":
        _engine().bias_gelu(x.numpy(), _host(bias), threads=torch.get_num_threads())
        return x
    if chosen == "triton":
        from ance_fast.ops import encoder_layer_triton as kernels

        return kernels.bias_gelu(x, bias)
    return x.copy_(bias_gelu_reference(x, bias))


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def bias_residual_layernorm_(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float, *, backend: str = "auto"
) -> Tensor:
    """x [T, D] <- layernorm(x + bias + residual) * weight + shift. Returns x."""
    chosen = dispatch(LAYER, x.device, x.dtype, backend, x.shape[1])
    if chosen == "cpp":
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
    if chosen == "triton":
        from ance_fast.ops import encoder_layer_triton as kernels

        return kernels.bias_residual_layernorm(x, bias, residual, weight, shift, eps)
    return x.copy_(bias_residual_layernorm_reference(x, bias, residual, weight, shift, eps))


def bias_residual_layernorm_reference(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> Tensor:
    return F.layer_norm(x + bias + residual, (x.shape[1],), weight, shift, eps)


def packed_self_attention(
    qkv: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    heads: int,
    max_seqlen: int,
    *,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of every sequence to itself: qkv [T, 3 D] and its bias [3 D], if not yet added -> [T, D].

    `cu_seqlens` int32 [B + 1]; no sequence is longer than `max_seqlen`. `out` [T, D] is room that may be used for the
    result. D / heads must be a multiple of 16 for the C++ kernel, and of 8, at most 256, for FlashAttention.
    """
    width = qkv.shape[1] // 3
    chosen = dispatch(ATTENTION, qkv.device, qkv.dtype, backend)
    if chosen == "varlen":
        q, k, v = (qkv if bias is None else qkv + bias).view(len(qkv), 3, heads, width // heads).unbind(1)
        return _varlen(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    if chosen == "cpp" and width // heads % 16 == 0:
        result = torch.empty(len(qkv), width) if out is None else out
        _engine().packed_attention(
            qkv.numpy(),
            np.zeros(3 * width, np.float32) if bias is None else _host(bias),
            _host(cu_seqlens),
            heads=heads,
            scale=float(np.sqrt(heads / width)),
            out=result.numpy(),
            threads=torch.get_num_threads(),
        )
        return result
    return packed_self_attention_reference(qkv, bias, cu_seqlens, heads)


def packed_self_attention_reference(qkv: Tensor, bias: Tensor | None, cu_seqlens: Tensor, heads: int) -> Tensor:
    q, k, v = (qkv if bias is None else qkv + bias).chunk(3, dim=1)
    return _attend(q, k, v, cu_seqlens.tolist(), cu_seqlens.tolist(), heads)


def packed_cls_attention(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, heads: int, max_seqlen: int, *, backend: str = "auto"
) -> Tensor:
    """Attention of one query a sequence to the sequence's tokens: q [B, D], kv [T, 2 D] -> [B, D].

    What a last layer needs whose first tokens alone are read. `cu_seqlens` int32 [B + 1]; no sequence is longer than
    `max_seqlen`; an empty one gives zeros. D / heads as in `packed_self_attention`.
    """
    head_dim = q.shape[1] // heads
    chosen = dispatch(ATTENTION, kv.device, kv.dtype, backend)
    if chosen == "varlen":
        k, v = kv.view(len(kv), 2, heads, head_dim).unbind(1)
        single = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
        return _varlen(q.view(len(q), heads, head_dim), k, v, single, cu_seqlens, 1, max_seqlen)
    if chosen == "cpp" and head_dim % 16 == 0:
        result = torch.empty_like(q)
        _engine().packed_cls_attention(
            q.numpy(),
            kv.numpy(),
            _host(cu_seqlens),
            heads=heads,
            scale=head_dim**-0.5,
            out=result.numpy(),
            threads=torch.get_num_threads(),
        )
        return result
    return packed_cls_attention_reference(q, kv, cu_seqlens, heads)


def packed_cls_attention_reference(q: Tensor, kv: Tensor, cu_seqlens: Tensor, heads: int) -> Tensor:
    k, v = kv.chunk(2, dim=1)
    return _attend(q, k, v, list(range(len(q) + 1)), cu_seqlens.tolist(), heads)


def _attend(q: Tensor, k: Tensor, v: Tensor, q_edges: list[int], k_edges: list[int], heads: int) -> Tensor:
    """Sequence by sequence; a query without keys gives zeros."""
    out = torch.zeros_like(q)
    q, k, v = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    for ours, theirs in zip(itertools.pairwise(q_edges), itertools.pairwise(k_edges), strict=True):
        rows, keys = slice(*ours), slice(*theirs)
        weights = torch.softmax(q[:, rows] @ k[:, keys].transpose(1, 2) / (q.shape[2] ** 0.5), dim=-1)
        out[rows] = (weights @ v[:, keys]).transpose(0, 1).flatten(1)
    return out


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int) -> Tensor:
    """FlashAttention over [T, heads, head_dim] views, which need not be contiguous but in their last dimension."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q, k, v, cu_q, cu_k, longest_q, longest_k)
    assert isinstance(out, Tensor)
    return out.flatten(1)


def _engine():  # type: ignore[no-untyped-def]
    from ance_fast import _C

    return _C


def _host(x: Tensor) -> np.ndarray:
    return x.detach().numpy()
