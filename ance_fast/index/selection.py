"""Which documents a search may return: a set for all queries, and exceptions of single queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.errors import ConfigError
from ance_fast.index.ids import IdTable

Csr = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Selection:
    """What n queries may find among `count` documents.

    Attributes:
        allow: bool [count], for all queries; None: every document.
        exclude: CSR (offsets int64 [n + 1], positions int64), the documents hidden from single queries; None: none are.
    """

    count: int
    allow: np.ndarray | None = None
    exclude: Csr | None = None

    @property
    def allowed(self) -> int:
        """Documents that all queries may find."""
        return self.count if self.allow is None else int(self.allow.sum())

    @property
    def most_excluded(self) -> int:
        """The largest number of documents hidden from one query alone."""
        if self.exclude is None or len(self.exclude[0]) < 2:
            return 0
        return int(np.diff(self.exclude[0]).max())

    def queries(self, start: int, stop: int) -> Selection:
        """The selection of the queries start .. stop."""
        if self.exclude is None:
            return self
        offsets, positions = self.exclude
        part = offsets[start : stop + 1]
        return Selection(self.count, self.allow, (part - part[0], positions[part[0] : part[-1]]))

    def documents(self, first: int, stop: int) -> Selection:
        """The selection among the documents first .. stop, numbered from 0."""
        allow = None if self.allow is None else self.allow[first:stop]
        if self.exclude is None:
            return Selection(stop - first, allow)
        offsets, positions = self.exclude
        inside = (positions >= first) & (positions < stop)
        kept = np.concatenate([[0], np.cumsum(inside)])[offsets]
        return Selection(stop - first, allow, (kept, positions[inside] - first))

    def without_exceptions(self, positions: np.ndarray) -> np.ndarray:
        """`positions` [n, m], with -1 where the document is hidden from that query alone."""
        if self.exclude is None or not len(self.exclude[1]):
            return positions
        offsets, excluded = self.exclude
        rows = np.arange(len(positions), dtype=np.int64)
        keys = np.repeat(rows, np.diff(offsets)) * self.count + excluded
        hidden = np.isin(rows[:, None] * self.count + positions, keys) & (positions >= 0)
        return np.where(hidden, -1, positions)


def make_selection(
    ids: IdTable,
    queries: int,
    exclude: Collection[str] | Sequence[Collection[str]] | None = None,
    allow: Collection[str] | None = None,
    exclude_positions: tuple[Any, Any] | None = None,
) -> Selection:
    """What `Index.search` is asked for, in row numbers. Arguments and errors are described there."""
    mask: np.ndarray | None = None
    if allow is not None:
        _refuse_string("allow", allow)
        rows = ids.find(allow)
        unknown = next((name for name in allow if name not in rows), None)
        if unknown is not None:
            raise ConfigError(f"allow names the document {unknown!r}, which is not in the index")
        mask = np.zeros(len(ids), dtype=bool)
        mask[list(rows.values())] = True
    lists = None if exclude_positions is None else checked_lists(*exclude_positions, queries, len(ids))
    if exclude is not None and len(exclude):
        _refuse_string("exclude", exclude)
        if _is_nested(exclude):
            if lists is not None:
                raise ConfigError("exclude lists documents of each query, and so does exclude_positions; give one")
            lists = _lists_of_ids(ids, exclude, queries)
        else:
            mask = np.ones(len(ids), dtype=bool) if mask is None else mask
            mask[list(ids.find(exclude).values())] = False  # type: ignore[arg-type]
    return Selection(len(ids), mask, lists)


def checked_lists(offsets: Any, positions: Any, queries: int, count: int) -> Csr:
    """CSR lists of row numbers, a list a query. Raises `ConfigError` unless they fit `queries` and `count`."""
    offsets, positions = np.asarray(offsets), np.asarray(positions)
    for name, array in (("offsets", offsets), ("positions", positions)):
        if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
            raise ConfigError(f"exclude_positions: {name} are {array.dtype} {list(array.shape)}; expected int64 [..]")
    offsets, positions = offsets.astype(np.int64), positions.astype(np.int64)
    if len(offsets) != queries + 1 or offsets[0] != 0 or offsets[-1] != len(positions) or (np.diff(offsets) < 0).any():
        raise ConfigError(
            f"exclude_positions: offsets must be {queries + 1} numbers (one more than queries) that rise from 0 to "
            f"{len(positions)}, the number of positions"
        )
    if len(positions) and (positions.min() < 0 or positions.max() >= count):
        raise ConfigError(
            f"exclude_positions: positions {positions.min()}..{positions.max()} given, the index has {count} documents"
        )
    return offsets, positions


def _is_nested(exclude: Any) -> bool:
    if isinstance(exclude, pa.Array | pa.ChunkedArray):
        return False
    kinds = {isinstance(entry, str) for entry in exclude}
    if len(kinds) > 1:
        raise ConfigError("exclude mixes ids and collections of ids; give ids, or a collection of ids for each query")
    return not kinds.pop()


def _lists_of_ids(ids: IdTable, exclude: Any, queries: int) -> Csr:
    if not isinstance(exclude, Sequence | np.ndarray):
        raise ConfigError(f"exclude is a {type(exclude).__name__} of collections; which is whose? Give a list")
    if len(exclude) != queries:
        raise ConfigError(f"exclude has {len(exclude)} collections of ids for {queries} queries")
    for names in exclude:
        if not isinstance(names, Iterable):
            raise ConfigError(f"exclude holds {names!r}; give a collection of ids for each query")
    rows = ids.find(dict.fromkeys(name for names in exclude for name in names))
    lists = [[rows[name] for name in dict.fromkeys(names) if name in rows] for names in exclude]
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in lists])]).astype(np.int64)
    return offsets, np.array([row for found in lists for row in found], dtype=np.int64)


def _refuse_string(name: str, chosen: Any) -> None:
    if isinstance(chosen, str):
        raise ConfigError(f"{name} is the string {chosen!r}; give a collection of document ids")
