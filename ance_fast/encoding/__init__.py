"""From a token store to embeddings on disk."""

from ance_fast.encoding.corpus import encode_corpus
from ance_fast.encoding.shards import EmbeddingShards

__all__ = ["EmbeddingShards", "encode_corpus"]
