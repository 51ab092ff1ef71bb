"""What every search returns: scores and row numbers in rank order, ids on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index.ids import IdTable


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Ranked documents of n queries.

    Attributes:
        scores: float32 [n, k], descending; -inf past the end.
        positions: int64 [n, k], the document's row in the index; -1 past the end. Equal scores: smaller first.
        id_table: the index's document ids.
    """

    scores: np.ndarray
    positions: np.ndarray
    id_table: IdTable

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def ids(self) -> list[list[str]]:
        """Document ids of each query in rank order, without the padding (rows may differ in length)."""
        found = self.positions >= 0
        flat = self.id_table.take(self.positions[found])
        ends = np.cumsum(found.sum(axis=1)).tolist()
        return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def to_run(self, query_ids: Sequence[str]) -> dict[str, dict[str, float]]:
        """The result as a run, query id -> {document id: score}, in rank order.

        Equal scores stay equal: whoever sorts the run again by score alone (`evaluate` does, by score and then by
        document id) may rank such documents differently than `positions` does.

        Raises:
            ConfigError: another number of query ids than queries, or a query id given twice.
        """
        if len(query_ids) != len(self):
            raise ConfigError(f"{len(query_ids)} query ids for the results of {len(self)} queries")
        run: dict[str, dict[str, float]] = {}
        for query_id, ids, scores in zip(query_ids, self.ids, self.scores.tolist(), strict=True):
            if query_id in run:
                raise ConfigError(f"query id {query_id!r} is given twice; a run holds each query once")
            run[query_id] = dict(zip(ids, scores, strict=False))
        return run


def checked_k(k: int) -> int:
    """`k` as int. Raises `ConfigError` unless it is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k is {k!r}; it must be a whole number of at least 1")
    return int(k)


def ranked(scores: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder each row of `scores`, `positions` [n, k] by (-score, position); padding (position -1) goes last."""
    scores = np.where(positions < 0, np.float32(-np.inf), scores).astype(np.float32, copy=False)
    left, right = scores[:, :-1], scores[:, 1:]
    # FAISS returns falling scores, so that most rows (all without ties or padding in their midst) stand as they are.
    in_place = (left > right) | ((left == right) & (positions[:, :-1] >= 0) & (positions[:, :-1] < positions[:, 1:]))
    in_place |= positions[:, 1:] < 0
    moved = np.flatnonzero(~in_place.all(axis=1))
    if len(moved):
        order = np.lexsort((positions[moved], -scores[moved], positions[moved] < 0), axis=-1)
        positions = positions.copy()
        scores[moved] = np.take_along_axis(scores[moved], order, axis=-1)
        positions[moved] = np.take_along_axis(positions[moved], order, axis=-1)
    return scores, positions


def padded(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring `scores` float32 and `positions` int64 [n, m <= k] to k columns with -inf and -1."""
    missing = k - scores.shape[1]
    if not missing:
        return scores, positions
    widths = ((0, 0), (0, missing))
    return np.pad(scores, widths, constant_values=-np.inf), np.pad(positions, widths, constant_values=-1)
