"""Operations on packed tokens and embeddings: one file each, with its dispatch, its reference and its custom op."""

from __future__ import annotations

from ance_fast.ops.contrastive_loss import contrastive_loss
from ance_fast.ops.pairwise_loss import pairwise_loss
from ance_fast.ops.pool_normalize import pool_head, pool_normalize
from ance_fast.ops.topk_inner_product import StreamingTopK, merge_topk, topk_inner_product

__all__ = [
    "StreamingTopK",
    "contrastive_loss",
    "merge_topk",
    "pairwise_loss",
    "pool_head",
    "pool_normalize",
    "topk_inner_product",
]
