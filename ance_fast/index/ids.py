"""Document ids in row order, one Arrow column: 8.8 million of them are 130 MB instead of a gigabyte of objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ance_fast.errors import ArtifactError, ConfigError

BATCH_ROWS = 1 << 20


class IdTable:
    """Row number <-> document id; rows are 0 .. len - 1 and ids are distinct strings."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    @classmethod
    def from_ids(cls, ids: Any, count: int, *, start: int = 0) -> IdTable:
        """`count` ids from a sequence of str or an Arrow array; None numbers them "start", "start + 1", ....

        Raises:
            ConfigError: another number of ids than rows, an id that is not a string, or an id given twice.
        """
        if ids is None:
            numbers = pa.array(np.arange(start, start + count, dtype=np.int64))
            return cls(pa.chunked_array([pc.cast(numbers, pa.large_string())]))
        column = _string_column(ids)
        if len(column) != count:
            raise ConfigError(f"{len(column)} ids for {count} vectors; give one id a vector")
        _refuse_duplicates(column)
        return cls(column)

    @classmethod
    def read(cls, path: Path) -> IdTable:
        """Map the file that `write` made. Raises `ArtifactError` if it is not such a file."""
        try:
            with pa.memory_map(str(path)) as source:
                column = pa.ipc.open_file(source).read_all().column("id")
        except (pa.ArrowInvalid, KeyError) as error:
            raise ArtifactError(f"{path}: not an id table ({error}); build the index again") from error
        return cls(column)

    def write(self, path: Path) -> None:
        """Write an Arrow IPC file with the one column `id` (large_string, no nulls)."""
        table = pa.table({"id": self._column})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH_ROWS)

    @property
    def arrow(self) -> pa.ChunkedArray:
        """The column itself."""
        return self._column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: int) -> str:
        return str(self._column[row].as_py())

    def take(self, rows: np.ndarray) -> list[str]:
        """The ids of `rows` (integers, any length, all in range)."""
        ids: list[str] = self._column.take(pa.array(rows, type=pa.int64())).to_pylist()
        return ids

    def to_list(self) -> list[str]:
        """All ids in row order."""
        ids: list[str] = self._column.to_pylist()
        return ids

    def find(self, ids: Collection[str]) -> dict[str, int]:
        """Row of each of `ids` that is in the table; unknown ones are left out.

        One pass over the column with a hash table of the few ids asked for, never one of the whole corpus.
        """
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        codes = pc.index_in(self._column, value_set=_string_array(wanted))
        rows = np.flatnonzero(pc.is_valid(codes).to_numpy())
        which = codes.take(pa.array(rows)).to_pylist()
        return {wanted[code]: int(row) for code, row in zip(which, rows, strict=True)}

    def extended(self, other: IdTable) -> IdTable:
        """This table followed by `other`. Raises `ConfigError` naming an id that is in both."""
        shared = pc.index_in(self._column, value_set=other._column)
        rows = np.flatnonzero(pc.is_valid(shared).to_numpy())
        if len(rows):
            raise ConfigError(
                f"document id {self[int(rows[0])]!r} is already in the index (row {rows[0]}); "
                f"{len(rows)} of {len(other)} ids are; ids must be distinct"
            )
        return IdTable(pa.chunked_array([*self._column.chunks, *other._column.chunks], type=pa.large_string()))

    def without(self, rows: np.ndarray) -> IdTable:
        """This table less `rows`."""
        kept = np.ones(len(self), dtype=bool)
        kept[rows] = False
        return IdTable(self._column.filter(pa.array(kept)))

    @classmethod
    def joined(cls, tables: Sequence[IdTable]) -> IdTable:
        """The tables one after the other. Raises `ConfigError` naming an id that is in two of them, and which."""
        column = pa.chunked_array([chunk for table in tables for chunk in table._column.chunks], type=pa.large_string())
        if pc.count_distinct(column).as_py() != len(column):
            for later, table in enumerate(tables):
                for earlier, other in enumerate(tables[:later]):
                    both = np.flatnonzero(pc.is_valid(pc.index_in(other._column, value_set=table._column)).to_numpy())
                    if len(both):
                        raise ConfigError(
                            f"document id {other[int(both[0])]!r} is in index {earlier} and in index {later} of those "
                            f"merged, and so are {len(both) - 1} others; ids must be distinct"
                        )
        return cls(column)

    @property
    def nbytes(self) -> int:
        """Bytes of the column."""
        return int(self._column.nbytes)


def _string_column(ids: Any) -> pa.ChunkedArray:
    if isinstance(ids, IdTable):
        return ids._column
    if isinstance(ids, str):
        raise ConfigError(f"ids is the string {ids!r}; give a sequence of strings, one a vector")
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        column = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ConfigError(f"ids are of Arrow type {column.type}; they must be strings")
        column = column.cast(pa.large_string())
    else:
        column = pa.chunked_array([_string_array(ids)], type=pa.large_string())
    if column.null_count:
        raise ConfigError("an id is missing (null); every document needs a string id")
    return column


def _string_array(ids: Iterable[Any]) -> pa.Array:
    values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    try:
        return pa.array(values, type=pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        first = next((value for value in values if not isinstance(value, str)), None)
        what = f"id {first!r} is a {type(first).__name__}" if first is not None else str(error)
        raise ConfigError(f"{what}; document ids must be strings") from error


def _refuse_duplicates(column: pa.ChunkedArray) -> None:
    if not len(column) or pc.count_distinct(column).as_py() == len(column):
        return
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    repeated = np.ones(len(codes), dtype=bool)
    repeated[first] = False
    row = int(np.argmax(repeated))
    raise ConfigError(
        f"document id {column[row].as_py()!r} is given twice (rows {first[inverse[row]]} and {row}); "
        f"{int(repeated.sum())} of {len(codes)} ids repeat an earlier one; ids must be distinct"
    )
