"""Search over document vectors (`Index`: FAISS or exact) and over words (`Bm25`), both returning a `SearchResult`."""

from __future__ import annotations

from ance_fast.index.bm25 import Bm25
from ance_fast.index.index import Index
from ance_fast.index.result import SearchResult

__all__ = ["Bm25", "Index", "SearchResult"]
