"""Which rows of a corpus are chunks of which document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ance_fast.data.chunks import SEPARATOR
from ance_fast.data.id_column import IdColumn
from ance_fast.data.records import Document
from ance_fast.errors import ConfigError

if TYPE_CHECKING:
    from ance_fast.data.token_store import TokenStore

Csr = tuple[np.ndarray, np.ndarray]


class DocumentGroups(Protocol):
    """Rows that belong to documents.

    Attributes:
        numbers: int64 [rows], the document of each row.
        ids: of the documents, in the order of their numbers.
        most: rows of the document that has the most.
    """

    @property
    def numbers(self) -> np.ndarray: ...
    @property
    def ids(self) -> IdColumn: ...
    @property
    def most(self) -> int: ...


@dataclass(frozen=True)
class NamedGroups:
    """`DocumentGroups` from the ids of rows alone; made by `groups_by_id`."""

    numbers: np.ndarray
    ids: IdColumn

    @cached_property
    def most(self) -> int:
        """Rows of the document that has the most."""
        return int(np.bincount(self.numbers).max(initial=0))


def groups_by_id(ids: pa.ChunkedArray, separator: str) -> NamedGroups:
    """Rows whose ids are equal up to the last `separator` are one document: "doc7#0", "doc7#1" of "doc7".

    An id without it is a document's own. Raises `ConfigError` if no id holds it, and for an empty one.
    """
    if not separator:
        raise ConfigError("document_separator is empty")
    if not pc.any(pc.match_substring(ids, separator)).as_py():
        raise ConfigError(f"document_separator={separator!r}: no passage id holds it, such as {ids[0].as_py()!r}")
    documents = pc.list_element(pc.split_pattern(ids, separator, max_splits=1, reverse=True), 0)
    distinct = pc.unique(documents)
    numbers: np.ndarray = pc.index_in(documents, value_set=distinct).to_numpy()
    return NamedGroups(numbers.astype(np.int64), IdColumn(pa.chunked_array([distinct], pa.large_string())))


@dataclass(frozen=True)
class ChunkedDocuments:
    """The documents of a token store in chunks, numbered in its order; a document's rows follow one another.

    Attributes:
        starts: int64 [documents + 1]; document d has the rows starts[d] .. starts[d + 1] - 1.
        filled: int64 [documents], how many of them have tokens: the first ones.
        ids: of the documents.
    """

    starts: np.ndarray
    filled: np.ndarray
    ids: IdColumn

    @classmethod
    def from_chunks(cls, chunk: np.ndarray, lengths: np.ndarray, ids: pa.ChunkedArray) -> ChunkedDocuments:
        """From each row's number in its document [rows], its tokens [rows] and its id, `DOCUMENT#N`."""
        first = np.flatnonzero(chunk == 0)
        starts = np.append(first, len(chunk)).astype(np.int64)
        filled = np.add.reduceat((lengths > 0).astype(np.int64), first) if len(first) else first
        names = pc.utf8_slice_codeunits(ids.filter(pa.array(chunk == 0)), 0, -len(f"{SEPARATOR}0"))
        return cls(starts, filled, IdColumn(names))

    def __len__(self) -> int:
        return len(self.filled)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The document of each row, int64 [rows]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def most(self) -> int:
        """Rows of the document that has the most."""
        return int(np.diff(self.starts).max(initial=0))

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Number of each document id, int64 [len(ids)], -1 where unknown; ask for many at once."""
        return self.ids.positions(ids)

    def rows_of(self, documents: np.ndarray, *, filled: bool = True) -> Csr:
        """The rows of these documents (int64) as CSR: offsets int64 [len(documents) + 1], rows int64.

        filled: those that have tokens, else all.
        """
        counts = self.filled[documents] if filled else np.diff(self.starts)[documents]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return offsets, np.repeat(self.starts[documents] - offsets[:-1], counts) + np.arange(offsets[-1])

    def all_rows(self, lists: Csr) -> Csr:
        """Lists of documents (offsets, documents) as lists of all their rows."""
        offsets, documents = lists
        ends, rows = self.rows_of(documents, filled=False)
        return ends[offsets], rows


@dataclass(frozen=True)
class StoreDocuments:
    """The documents of a token store in chunks, asked for as the rows of a store without chunks are."""

    store: TokenStore
    chunked: ChunkedDocuments

    def __len__(self) -> int:
        return len(self.chunked)

    @property
    def ids(self) -> IdColumn:
        """Of the documents."""
        return self.chunked.ids

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Number of each document id, int64 [len(ids)], -1 where unknown; ask for many at once."""
        return self.chunked.positions(ids)

    def document(self, number: int) -> Document:
        """The document of this number. Raises `IndexError`, and `ArtifactError` if texts were not kept."""
        return self.store.document(int(self.chunked.starts[:-1][number]))

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Texts, without titles, of the documents of these numbers (int64). Raises as `document`."""
        return self.store.texts(self.chunked.starts[:-1][numbers])
