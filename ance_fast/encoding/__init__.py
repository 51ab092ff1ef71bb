"""From a token store to embeddings: on disk, in an index, or in a matrix."""

from ance_fast.encoding.corpus import encode_corpus
from ance_fast.encoding.pipeline import encode_matrix, encode_spans
from ance_fast.encoding.ring import EmbeddingRing, RingCancelled
from ance_fast.encoding.ring_slots import DeviceCopyError
from ance_fast.encoding.shards import EmbeddingShards
from ance_fast.encoding.sinks import MatrixSink, Sink
from ance_fast.encoding.stages import StageTimes

__all__ = [
    "DeviceCopyError",
    "EmbeddingRing",
    "EmbeddingShards",
    "MatrixSink",
    "RingCancelled",
    "Sink",
    "StageTimes",
    "encode_corpus",
    "encode_matrix",
    "encode_spans",
]
