"""Ids of documents in row order, in Arrow memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class IdColumn(Sequence[str]):
    """Document ids as a sequence of `str` that lies in Arrow memory; `arrow` is the column itself."""

    def __init__(self, arrow: pa.ChunkedArray) -> None:
        self.arrow = arrow

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            rows = pa.array(range(start, stop, step), pa.int64())
            found: list[str] = self.arrow.take(rows).to_pylist()
            return found
        one: str = self.arrow[int(index)].as_py()
        return one

    def __iter__(self) -> Iterator[str]:
        for chunk in self.arrow.chunks:
            yield from chunk.to_pylist()

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and bool(self.positions([value])[0] >= 0)

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id, int64 [len(ids)], -1 where unknown.

        One pass over the whole column whatever the number of ids: ask for many at once. Needs memory for `ids` and 4
        bytes a row of the column.
        """
        wanted = pc.dictionary_encode(pa.array(list(ids), pa.large_string()))
        rows = np.full(len(wanted.dictionary), -1, dtype=np.int64)
        start = 0
        # The table that is searched holds the ids asked for, not the column, which may be far larger.
        for found in pc.index_in(self.arrow, value_set=wanted.dictionary).chunks:
            numbers = pc.fill_null(found, -1).to_numpy()
            here = np.flatnonzero(numbers >= 0)
            rows[numbers[here]] = start + here
            start += len(found)
        return rows[wanted.indices.to_numpy()]
