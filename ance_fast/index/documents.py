"""Search over chunks that answers with documents: each by its best chunk, and as many of them as were asked for.

The k best chunks are often of fewer than k documents, so more of them are fetched until there are k documents. A
document has at most `most` chunks; therefore k * most of the best chunks are always enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ance_fast.data.chunked_documents import DocumentGroups
from ance_fast.index.ids import IdTable
from ance_fast.index.result import SearchResult, checked_k, padded
from ance_fast.index.vectors import as_array

if TYPE_CHECKING:
    from ance_fast.index.index import Index

# Queries whose chunks are in memory at once: enough for searches that gain from many, some hundred MB at k = 200.
BLOCK_QUERIES = 16_384
# Chunks of a document among the best of a query, on average: what is fetched at first.
FIRST_FACTOR = 2

Hits = tuple[np.ndarray, np.ndarray]
"""Scores float32 [n, k] and rows int64 [n, k] in rank order, -inf and -1 past the end."""


def search_documents(
    index: Index,
    query_embeddings: Any,
    k: int,
    documents: DocumentGroups,
    *,
    exclude_positions: tuple[np.ndarray, np.ndarray] | None = None,
    params: Mapping[str, int] | None = None,
) -> SearchResult:
    """The k best documents of each query, a document's score being that of its best chunk.

    query_embeddings, k, params, exclude_positions (rows of the index, CSR): as for `Index.search`. documents: of the
    rows of the index. The result's positions are numbers of documents. Equal scores: the smaller row first.

    Exact where the index is; others may return fewer documents than k.

    Raises `ConfigError` as `Index.search` does.
    """
    k, queries = checked_k(k), np.atleast_2d(as_array(query_embeddings))

    def nearest(chosen: np.ndarray, depth: int) -> Hits:
        excluded = None if exclude_positions is None else part_of(exclude_positions, chosen)
        found = index.search(queries[chosen], depth, exclude_positions=excluded, params=params)
        return found.scores, found.positions

    scores, positions = best_documents(nearest, len(queries), k, documents, rows=len(index))
    return SearchResult(scores, positions, IdTable(documents.ids.arrow))


def best_documents(
    nearest: Callable[[np.ndarray, int], Hits], queries: int, k: int, documents: DocumentGroups, *, rows: int
) -> Hits:
    """Scores [queries, k] and documents [queries, k] from `nearest(query numbers int64 [m], depth)`, which gives the
    nearest of `rows` chunks; asked again, deeper, only for the queries that lack documents."""
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    found = np.full((queries, k), -1, dtype=np.int64)
    enough = min(k * max(1, documents.most), rows)
    for first in range(0, queries, BLOCK_QUERIES):
        waiting, depth = np.arange(first, min(first + BLOCK_QUERIES, queries)), min(FIRST_FACTOR * k, enough)
        while len(waiting) and depth:
            values, hits = nearest(waiting, depth)
            scores[waiting], found[waiting] = padded(*collapsed(values, hits, documents.numbers, k), k)
            # A list with an end has all there is.
            short = (found[waiting, -1] < 0) & (hits[:, -1] >= 0)
            waiting, depth = (waiting[short], min(2 * depth, enough)) if depth < enough else (waiting[:0], depth)
    return scores, found


def collapsed(scores: np.ndarray, rows: np.ndarray, numbers: np.ndarray, k: int) -> Hits:
    """Ranked rows [n, m] as the first k of their documents [n, min(k, m)], each where it comes up first."""
    documents = np.where(rows >= 0, numbers[rows], -1)
    order = np.argsort(documents, axis=1, kind="stable")
    ordered = np.take_along_axis(documents, order, axis=1)
    repeated = np.zeros(documents.shape, dtype=np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    first = np.empty_like(repeated)
    np.put_along_axis(first, order, ~repeated, axis=1)
    first &= documents >= 0
    rank = np.cumsum(first, axis=1) - 1
    width = min(k, documents.shape[1])
    kept = first & (rank < width)
    owner, column = np.nonzero(kept)
    best = np.full((len(rows), width), -np.inf, dtype=np.float32)
    chosen = np.full((len(rows), width), -1, dtype=np.int64)
    best[owner, rank[kept]] = scores[owner, column]
    chosen[owner, rank[kept]] = documents[owner, column]
    return best, chosen


def part_of(lists: tuple[np.ndarray, np.ndarray], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lists (offsets int64 [n + 1], values) of these (int64), in their order."""
    offsets, values = lists
    counts = np.diff(offsets)[chosen]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ends, values[np.repeat(offsets[:-1][chosen] - ends[:-1], counts) + np.arange(ends[-1])]
