"""Lists of passages that dev queries rank instead of the whole corpus: what another search found (`top1000.dev`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ance_fast.data.candidates import read_candidates
from ance_fast.data.text_lines import warn_counted
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import DataError
from ance_fast.index import Index
from ance_fast.index.factory import is_flat
from ance_fast.models.encoder import Encoder

logger = logging.getLogger(__name__)

# Gathered vectors of a block of pairs: 25 MB as float32 of 768.
BLOCK_PAIRS = 8192


@dataclass(frozen=True)
class Candidates:
    """The candidates of queries, as rows of `passages`, or where these are chunks as numbers of their documents.

    queries: ids. offsets int64 [n + 1], rows int64: those of query i are rows[offsets[i] : offsets[i + 1]], each once.
    """

    queries: Sequence[str]
    passages: TokenStore
    offsets: np.ndarray
    rows: np.ndarray

    def ranked(self, encoder: Encoder, vectors: np.ndarray, index: Index | None) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score of its candidates; `vectors` float32 [n, dim] are the queries'.

        Passages are taken from `index`, of their whole corpus, if it keeps exact vectors; else they are encoded now,
        each once. A document scores as the best of its chunks, those past its end included, as in the index.
        """
        wanted, place = np.unique(self.rows, return_inverse=True)
        exact = index is not None and is_flat(index.factory)
        rows = self._chunks(wanted)[1]
        encoded = None if exact else encoder.encode_tokens(self.passages, rows).cpu().numpy()
        owner = np.repeat(np.arange(len(self.queries)), np.diff(self.offsets))
        scores = np.empty(len(self.rows), dtype=np.float32)
        for start in range(0, len(scores), BLOCK_PAIRS):
            part = slice(start, start + BLOCK_PAIRS)
            starts, chunks = self._chunks(self.rows[part])
            if encoded is not None:
                found = encoded[np.searchsorted(rows, chunks)]
            else:
                assert index is not None
                found = index.reconstruct(chunks)
            asked = vectors[np.repeat(owner[part], np.diff(starts))]
            scores[part] = np.maximum.reduceat(np.einsum("nd,nd->n", asked, found), starts[:-1])
        names = self.passages.corpus.ids.arrow.take(wanted).to_pylist()
        return {
            query: {names[place[pair]]: float(scores[pair]) for pair in range(start, stop)}
            for query, start, stop in zip(self.queries, self.offsets[:-1], self.offsets[1:], strict=True)
            if stop > start
        }

    def _chunks(self, passages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that these are encoded from, as offsets int64 [len(passages) + 1] and rows int64."""
        documents = self.passages.chunked
        if documents is None:
            return np.arange(len(passages) + 1), passages
        return documents.rows_of(passages, filled=False)


def listed_candidates(path: str | Path, queries: Sequence[str], passages: TokenStore) -> Candidates:
    """The candidates that the file names for these query ids, as rows of `passages`, or documents of its chunks.

    The file is one that `ance_fast.data.read_candidates` reads: `top1000.dev`, or a run. Passages that the corpus lacks
    and queries that are not among these are a counted warning each.

    Raises `DataError` with file and line for malformed lines, and where no candidate is left.
    """
    found = read_candidates(path)
    asked = set(queries)
    others = [query for query in found if query not in asked]
    if others and len(others) < len(found):
        warn_counted(logger, len(others), f"queries of {path} are no dev queries", f"query {others[0]!r}")
    pairs = [(number, document) for number, query in enumerate(queries) for document in found.get(query, ())]
    rows = passages.corpus.positions([document for _, document in pairs])
    unknown = np.flatnonzero(rows < 0)
    known = rows >= 0
    if not known.any():
        raise DataError(f"{path}: names no candidate of a dev query that is in the corpus: wrong file or id format?")
    if len(unknown):
        number, document = pairs[int(unknown[0])]
        first = f"query {queries[number]!r}, passage {document!r}"
        warn_counted(logger, len(unknown), f"candidates of {path} are not in the corpus", first)
    owners = np.fromiter((number for number, _ in pairs), dtype=np.int64, count=len(pairs))[known]
    counts = np.bincount(owners, minlength=len(queries))
    return Candidates(list(queries), passages, np.concatenate([[0], np.cumsum(counts)]), rows[known])
