"""From a token store to embeddings on disk."""

from ance_fast.encoding.corpus import encode_corpus
from ance_fast.encoding.ring import DeviceCopyError, EmbeddingRing, RingCancelled
from ance_fast.encoding.shards import EmbeddingShards

__all__ = ["DeviceCopyError", "EmbeddingRing", "EmbeddingShards", "RingCancelled", "encode_corpus"]
