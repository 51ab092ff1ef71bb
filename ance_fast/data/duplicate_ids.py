"""Finding ids that come twice in a stream of millions.

A 64-bit hash of each id goes into an array that is compared whenever it has doubled, so that a duplicate near the start
of a large corpus is found early. Equal hashes are suspects; whoever holds or can read the ids again decides.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from ance_fast.errors import DataError

_FIRST_CHECK = 1 << 12
_CHUNK = 1024


def id_hash(identifier: str) -> int:
    """The 64-bit hash that `IdHashes` keeps."""
    return hash(identifier)


class IdHashes:
    """Hashes of the ids seen so far: 8 bytes an id, and as much again while they are compared."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._check_at = _FIRST_CHECK

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, identifier: str) -> bool:
        """Remember an id; true when it is time to look for `repeated` ones."""
        self._hashes.append(id_hash(identifier))
        if len(self._hashes) < self._check_at:
            return False
        self._check_at *= 2
        return True

    def repeated(self) -> set[int]:
        """The hashes that came more than once."""
        ordered = np.array(self._hashes, dtype=np.int64)
        ordered.sort()
        return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())

    def rows_of(self, hashes: set[int]) -> np.ndarray:
        """Positions, int64, of the ids that have one of these hashes."""
        return np.flatnonzero(np.isin(np.frombuffer(self._hashes, dtype=np.int64), list(hashes)))


class UniqueIds:
    """Ids of a stream that cannot be read again, in Arrow memory: a tenth of what a set of strings would take.

    `where(place)` says in words where an id stood, for messages; without it, messages name the id alone.
    """

    def __init__(self, where: Callable[[int], str] | None = None) -> None:
        self._where = where
        self._hashes = IdHashes()
        self._places = array("q")
        self._recent: list[str] = []
        self._chunks: list[pa.Array] = []

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, identifier: str, place: int = 0) -> None:
        """Remember an id. Raises `DataError` as `refuse_duplicates`, and for an id that UTF-8 cannot hold."""
        due = self._hashes.add(identifier)
        self._recent.append(identifier)
        if self._where:
            self._places.append(place)
        if len(self._recent) == _CHUNK:
            self._flush()
        if due:
            self.refuse_duplicates()

    def refuse_duplicates(self) -> None:
        """Raise `DataError` naming an id that came twice."""
        self._flush()
        suspects = self._hashes.repeated()
        if not suspects:
            return
        rows = self._hashes.rows_of(suspects)
        first: dict[str, int] = {}
        for row, identifier in zip(rows.tolist(), self._ids(rows), strict=True):
            if identifier in first:
                raise DataError(self._message(identifier, first[identifier], row))
            first[identifier] = row

    def _message(self, identifier: str, first: int, second: int) -> str:
        if self._where is None:
            return f"document id {identifier!r} comes twice; ids must be unique"
        here, there = self._where(self._places[second]), self._where(self._places[first])
        return f"{here}: document id {identifier!r} again, first at {there}; ids must be unique"

    def _ids(self, rows: np.ndarray) -> list[str]:
        found: list[str] = pa.chunked_array(self._chunks, pa.large_string()).take(pa.array(rows)).to_pylist()
        return found

    def _flush(self) -> None:
        try:
            self._chunks.append(pa.array(self._recent, pa.large_string()))
        except UnicodeEncodeError as error:
            raise DataError(f"document id {error.object!r}: half of a surrogate pair is no character") from error
        self._recent = []
