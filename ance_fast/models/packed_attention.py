"""Attention over sequences packed back to back, as a plug-in for any transformers encoder.

A packed batch is one row of T tokens; `cu_seqlens` says where each sequence begins. Tokens attend only within their own
sequence, so nothing is padded and nothing is masked. The function below is registered under `IMPLEMENTATION` with
transformers' `AttentionInterface`; the model's own code stays as it is and hands the layout through as a keyword
argument.

- CPU: sequences of equal length lie side by side (the packer sorts by length), so each length is one dense SDPA call.
- CUDA: `torch.nn.attention.varlen.varlen_attn` (FlashAttention, fp16/bf16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

IMPLEMENTATION = "ance_fast_packed"


@dataclass(frozen=True)
class PackedLayout:
    """Where the sequences of a packed row lie.

    `cu_seqlens` int32 [B+1] on the model's device; `groups` lists runs of equal length as (first token, sequences,
    length), known on the host so that no kernel launch waits for the device.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    groups: tuple[tuple[int, int, int], ...]

    @classmethod
    def from_lengths(cls, lengths: np.ndarray, cu_seqlens: Tensor) -> PackedLayout:
        """Find the runs of equal length in `lengths` (int [B], in packed order). Empty sequences belong to no group."""
        groups = []
        start = 0
        if len(lengths):
            edges = np.flatnonzero(np.diff(lengths)) + 1
            for run in np.split(np.asarray(lengths), edges):
                length, count = int(run[0]), len(run)
                if length:
                    groups.append((start, count, length))
                start += length * count
        return cls(cu_seqlens, int(max(lengths, default=0)), tuple(groups))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    packed_layout: PackedLayout,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The `AttentionInterface` contract: query [1, H, T, d], key and value [1, H_kv, T, d] -> ([1, T, H, d], None)."""
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    # transformers counts a bidirectional window exclusively (distance < sliding_window), a causal one likewise.
    window = None if sliding_window is None or sliding_window > packed_layout.max_seqlen else sliding_window
    if query.is_cuda:
        return _varlen(query, key, value, packed_layout, scaling, causal, window), None
    gqa = key.shape[1] != query.shape[1]
    pieces = []
    for (_, count, length), *parts in zip(
        packed_layout.groups, *(_by_group(x, packed_layout) for x in (query, key, value)), strict=True
    ):
        q, k, v = (part.unflatten(0, (count, length)).transpose(1, 2) for part in parts)
        mask = None if window is None or window > length else _band(length, window, causal, query.device)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=causal and mask is None, enable_gqa=gqa
        )
        pieces.append(out.transpose(1, 2).reshape(count * length, query.shape[1], value.shape[3]))
    packed = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return packed.unsqueeze(0), None


def _by_group(packed: Tensor, layout: PackedLayout) -> tuple[Tensor, ...]:
    """[1, H, T, d] -> one view [count * length, H, d] a group. A split's gradient is one concatenation; slices would
    each add a tensor of full size."""
    return packed[0].transpose(0, 1).split([count * length for _, count, length in layout.groups])


def _band(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    cu, longest = layout.cu_seqlens, layout.max_seqlen
    out = varlen_attn(q, k, v, cu, cu, longest, longest, scale=scaling, window_size=(reach, 0 if causal else reach))
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
