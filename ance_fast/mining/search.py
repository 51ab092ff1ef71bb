"""Queries to negatives: exact search with every positive left out, filters, a choice. Rows from end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index import Index
from ance_fast.index.vectors import normalized
from ance_fast.mining.limits import Limits

Csr = tuple[np.ndarray, np.ndarray]
Rescore = Callable[[np.ndarray, np.ndarray], np.ndarray]

BLOCK_QUERIES = 1024


@dataclass(frozen=True)
class Mined:
    """Negatives of n queries.

    Attributes:
        rows: int64 [n, count], rows of the index, best first; -1 past the last that was found.
        scores: float32 [n, count], -inf past the end.
        positive_scores: float32, of each entry of the positives' list; empty if they were not needed.
        removed: candidates that each filter took.
    """

    rows: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    removed: dict[str, int] = field(default_factory=dict)


def mine_rows(
    index: Index,
    queries: np.ndarray,
    positives: Csr,
    limits: Limits,
    count: int,
    *,
    sampling: str = "top",
    seed: int | Sequence[int] = 42,
    include_positives: bool = False,
    room: int = 0,
    rescore: Rescore | None = None,
    score_positives: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Mined:
    """Mine `count` negatives for each query.

    Args:
        index: exact ("Flat") where scores of positives are needed, that is for margins and `score_positives`.
        queries: float32 [n, dim].
        positives: CSR (offsets int64 [n + 1], rows int64). None of a query's own comes back, however many it has: they
            are left out while the index is scanned, so that they take no place among the candidates.
        sampling: "top": the first that pass. "random": drawn uniformly without replacement from all that pass. What is
            drawn for a query depends on `seed`, its number and the window, not on what else is mined.
        include_positives: leave none out.
        room: look at so many candidates more, less the query's positives that rank among them. With the largest number
            of positives of any query that is the window of a search that finds positives too and drops them afterwards.
        rescore: (query numbers, rows), both int64 [m], to scores float32 [m], which replace the index's.
        progress: called with the queries done since the last call.

    Raises `ConfigError`: settings that cannot be met, and whatever the index refuses.
    """
    limits.refuse_unknown_sampling(sampling)
    limits.refuse_too_few(count)
    offsets, own = positives
    owner = np.repeat(np.arange(len(queries)), np.diff(offsets))
    near = np.zeros(0, dtype=np.float32)
    if limits.by_margin or score_positives or (room and not include_positives):
        near = _pair_scores(index, queries, owner, own)
    final = near if rescore is None else _finite(rescore(owner, own))
    lowest = np.full(len(queries), np.inf, dtype=np.float32)
    if limits.by_margin:
        np.minimum.at(lowest, owner, final)
    width = min(limits.range_max + room, len(index))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    rows = np.full((len(queries), count), -1, dtype=np.int64)
    scores = np.full((len(queries), count), -np.inf, dtype=np.float32)
    removed: dict[str, int] = {}
    for start in range(0, len(queries), BLOCK_QUERIES):
        part = slice(start, min(start + BLOCK_QUERIES, len(queries)))
        first, last = offsets[part.start], offsets[part.stop]
        hidden = (offsets[part.start : part.stop + 1] - first, own[first:last])
        found = index.search(queries[part], width, exclude_positions=None if include_positives else hidden)
        block_rows, block_scores = found.positions, found.scores
        if room and not include_positives:
            taken = _places_taken(block_scores, hidden[0], near[first:last], limits.range_max + room)
            block_scores = np.where(
                np.arange(width) < limits.range_max + room - taken[:, None], block_scores, np.float32(-np.inf)
            )
        if rescore is not None:
            block_scores = _rescored(rescore, part.start, block_rows, block_scores)
        columns, passing = limits.passing(block_scores, lowest[part], removed)
        if sampling == "random":
            # The width of the draw is that of the window, so that the size of the corpus does not shift the stream.
            draws = generator.random((len(columns), limits.range_max - limits.range_min))[:, : columns.shape[1]]
            chosen = np.argsort(np.where(passing > -np.inf, draws, 2.0), axis=1, kind="stable")[:, :count]
            chosen.sort(axis=1)
            columns, passing = (np.take_along_axis(values, chosen, axis=1) for values in (columns, passing))
        columns, passing = columns[:, :count], passing[:, :count]
        picked = np.where(passing > -np.inf, np.take_along_axis(block_rows, columns, axis=1), -1)
        rows[part, : picked.shape[1]], scores[part, : picked.shape[1]] = picked, passing
        if progress is not None:
            progress(part.stop - part.start)
    return Mined(rows, scores, final, removed)


def _pair_scores(index: Index, queries: np.ndarray, owner: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores float32 of (query, row) pairs, from the index's own vectors."""
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_QUERIES):
        part = slice(start, start + BLOCK_QUERIES)
        own = queries[owner[part]].astype(np.float32, copy=False)
        own = normalized(own) if index.metric == "cosine" else own
        scores[part] = np.einsum("ij,ij->i", own, index.reconstruct(rows[part]))
    return scores


def _places_taken(scores: np.ndarray, offsets: np.ndarray, positives: np.ndarray, width: int) -> np.ndarray:
    """How many of each query's positives would rank among the first `width` beside the candidates: int64 [n]."""
    owner = np.repeat(np.arange(len(scores)), np.diff(offsets))
    before = np.empty(len(positives), dtype=np.int64)
    order = np.lexsort((-positives, owner))
    before[order] = np.arange(len(positives)) - np.repeat(offsets[:-1], np.diff(offsets))
    for start in range(0, len(positives), BLOCK_QUERIES):
        part = slice(start, start + BLOCK_QUERIES)
        before[part] += (scores[owner[part]] > positives[part, None]).sum(axis=1)
    return np.bincount(owner[before < width], minlength=len(scores))


def _rescored(rescore: Rescore, first: int, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    replaced = np.full(scores.shape, -np.inf, dtype=np.float32)
    query, column = np.nonzero(scores > -np.inf)
    replaced[query, column] = _finite(rescore(query + first, rows[query, column]))
    return replaced


def _finite(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ConfigError("rescoring gave NaN or infinity; a score must be a finite number")
    return scores.astype(np.float32)
