"""Search over document vectors (`Index`: exact, or FAISS) and over words (`Bm25`), both returning a `SearchResult`."""

from __future__ import annotations

from ance_fast.index.bm25 import Bm25
from ance_fast.index.index import Index
from ance_fast.index.memory import MemoryEstimate
from ance_fast.index.recall import recall_at_k, sampled_recall
from ance_fast.index.resident import ResidentMatrix
from ance_fast.index.result import SearchResult
from ance_fast.index.sink import IndexSink

__all__ = [
    "Bm25",
    "Index",
    "IndexSink",
    "MemoryEstimate",
    "ResidentMatrix",
    "SearchResult",
    "recall_at_k",
    "sampled_recall",
]
