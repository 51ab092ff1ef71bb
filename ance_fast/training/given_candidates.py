"""What a run is given besides its encoder: ranked lists and teacher scores, from run files or the data set, and BM25.

A file is read line by line into arrays: 24 bytes a line that names a training query, and each document id once.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ance_fast.data.input_files import is_pipe
from ance_fast.data.text_lines import warn_counted
from ance_fast.data.trec import RunLine, listed_twice, read_run_lines
from ance_fast.errors import DataError
from ance_fast.index import Bm25
from ance_fast.training.examples import Examples
from ance_fast.training.negative_table import NegativeTable, mined_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredPairs:
    """Scores of some (query, passage) pairs: keys int64 [m], query * 2^32 + row, ascending; scores float64 [m].

    Each pair is there once. Asking for n pairs takes n binary searches, however many pairs there are.
    """

    keys: np.ndarray
    scores: np.ndarray

    @classmethod
    def ordered(cls, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> ScoredPairs:
        """The pairs of these queries and rows (int64), in any order."""
        keys = _keys(queries, rows)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], scores[order])

    @property
    def queries(self) -> np.ndarray:
        """The query of each pair, int64 [m]."""
        return self.keys >> 32

    @property
    def rows(self) -> np.ndarray:
        """The passage of each pair, int64 [m]."""
        return self.keys & 0xFFFFFFFF

    def of(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The score of each pair (broadcast against each other), float32; NaN for one without and for row -1."""
        asked = _keys(queries, rows)
        if not len(self.keys):
            return np.full(asked.shape, np.nan, dtype=np.float32)
        places = np.minimum(np.searchsorted(self.keys, asked), len(self.keys) - 1)
        return np.where((self.keys[places] == asked) & (rows >= 0), self.scores[places], np.nan).astype(np.float32)

    def best(self, examples: Examples, topk: int, source: str) -> NegativeTable:
        """The `topk` best-scored passages of every query as candidates; of equal scores the smaller row comes first."""
        queries, rows = self.queries, self.rows
        order = np.lexsort((rows, -self.scores, queries))
        queries, rows, scores = queries[order], rows[order], self.scores[order]
        counts = np.bincount(queries, minlength=len(examples))
        ranks = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = ranks < topk
        shape = len(examples), max(1, min(topk, int(counts.max(initial=0))))
        candidates, table_scores = np.full(shape, -1, dtype=np.int32), np.full(shape, -np.inf, dtype=np.float32)
        candidates[queries[kept], ranks[kept]] = rows[kept]
        table_scores[queries[kept], ranks[kept]] = scores[kept]
        return NegativeTable(candidates, table_scores, source, 0, 0)


def pairs_of(examples: Examples, run: Mapping[str, Mapping[str, float]]) -> ScoredPairs:
    """The pairs of a run (query id -> {document id: score}) whose query and document the examples have."""
    ids = list(examples.queries.ids)
    lists = [run.get(query, {}) for query in ids]
    owners = np.repeat(np.arange(len(ids)), np.array([len(documents) for documents in lists], dtype=np.int64))
    rows = examples.corpus.positions([document for documents in lists for document in documents])
    scores = np.fromiter((s for documents in lists for s in documents.values()), dtype=np.float64, count=len(rows))
    known = rows >= 0
    return ScoredPairs.ordered(owners[known], rows[known], scores[known])


def run_candidates(
    examples: Examples, run: Mapping[str, Mapping[str, float]], *, topk: int, source: str = "run"
) -> NegativeTable:
    """The best `topk` of a run (query id -> {document id: score}), of BM25 or of another model.

    Equal scores: the passage with the smaller row first. Queries and documents that are not in the examples are left
    out; a query that the run lacks has no candidates.
    """
    return pairs_of(examples, run).best(examples, topk, source)


def refuse_unreadable(candidates: Mapping[str, str]) -> None:
    """Raise `DataError` for a run file that is missing, a pipe, empty or of no known form, by its first line."""
    for path in candidates.values():
        if is_pipe(Path(path)):
            raise DataError(f"{path}: a pipe cannot be read again when the run is resumed; give a file")
        if next(read_run_lines(path), None) is None:
            raise DataError(f"{path}:1: the run file is empty")


def read_pairs(path: str | Path, examples: Examples) -> ScoredPairs:
    """What a run file says about the examples.

    Lines about other queries, or about documents that are not in the corpus, are passed over; the latter, and training
    queries that the file lacks, are warned about. Raises `DataError` with file and line: what `read_run_lines` raises,
    a document listed twice, a file without lines, and one in which nothing is about a training query and the corpus.
    """
    row_of = {query: row for row, query in enumerate(examples.queries.ids)}
    documents: dict[str, int] = {}
    owners, codes, lines, scores = array("i"), array("i"), array("q"), array("d")
    first: RunLine | None = None
    for line in read_run_lines(path):
        first = first or line
        owner = row_of.get(line.query_id)
        if owner is not None:
            owners.append(owner)
            codes.append(documents.setdefault(line.document_id, len(documents)))
            lines.append(line.number)
            scores.append(line.score)
    if first is None:
        raise DataError(f"{path}:1: the run file is empty")
    if not owners:
        raise DataError(
            f"{path}:{first.number}: query {first.query_id!r} and all others are no training queries: "
            "another split, or another form of id?"
        )
    ids = list(documents)
    rows = examples.corpus.positions(ids)[np.asarray(codes)]
    known = rows >= 0
    if not known.any():
        raise DataError(
            f"{path}:{lines[0]}: document {ids[codes[0]]!r} and all others are not in the corpus: "
            "another corpus, or another form of id?"
        )
    warn_counted(
        logger,
        int((~known).sum()),
        "lines name a document that is not in the corpus",
        f"{path}:{lines[known.argmin()]}",
    )
    queries = np.asarray(owners, dtype=np.int64)[known]
    without = np.setdiff1d(np.arange(len(examples)), queries)
    if len(without):
        name = examples.queries.ids[int(without[0])]
        logger.warning("%s: says nothing about %d training queries (first: %r)", path, len(without), name)
    numbers, keys = np.asarray(lines)[known], _keys(queries, rows[known])
    order = np.argsort(keys, kind="stable")
    repeated = np.diff(keys[order]) == 0
    if repeated.any():
        at = lines.index(int(numbers[order[1:][repeated]].min()))
        raise listed_twice(path, RunLine(lines[at], examples.queries.ids[owners[at]], ids[codes[at]], scores[at]))
    return ScoredPairs(keys[order], np.asarray(scores)[known][order])


def bm25_table(examples: Examples, topk: int) -> NegativeTable:
    """The best `topk` of every training query by BM25 over the corpus, positives left out."""
    corpus = examples.corpus
    texts = (corpus.document(row).full_text for row in range(len(corpus)))
    most = int(np.diff(examples.positive_offsets).max())
    found = Bm25.build(texts, corpus.ids).search(examples.texts, min(topk + most, len(corpus)))
    return mined_table(examples, found.positions, found.scores, "bm25", 0, 0).top(topk)


def _keys(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # Rows are int32 wherever there are tables of them.
    keys: np.ndarray = (np.asarray(queries, dtype=np.int64) << 32) + rows
    return keys
