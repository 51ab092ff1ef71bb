"""A scored position as one integer, so that a single comparison orders by (-score, position) and nothing ever ties.

An int64 key holds the float32 score above, its bits changed so that they order as integers, and 2^32 - 1 - position
below. csrc/topk_collector.h makes the same keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

POSITIONS = 2**32  # positions lie below
EMPTY = -(2**63)  # below every key


def pack_keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Keys int64 of scores fp32 [...] and positions int64 (broadcast); EMPTY for NaN and -inf, which are not kept."""
    bits = (scores + 0.0).view(torch.int32)  # -0 + 0 is +0: equal scores have equal bits
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = bits.long() * POSITIONS + (POSITIONS - 1 - positions)
    return torch.where(scores > -torch.inf, keys, EMPTY)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores fp32 and positions int64 of keys; -inf and -1 where EMPTY."""
    bits = (keys >> 32).int()
    scores = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    positions = POSITIONS - 1 - (keys & (POSITIONS - 1))
    empty = keys == EMPTY
    return scores.masked_fill(empty, -torch.inf), positions.masked_fill(empty, -1)
