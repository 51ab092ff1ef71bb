"""Whatever a caller hands over as a corpus, as a stream of documents with unique ids, cut into slices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import pyarrow as pa

from ance_fast.data.dataset import Corpus
from ance_fast.data.document_batches import encode_rows, to_arrow
from ance_fast.data.duplicate_ids import UniqueIds
from ance_fast.data.records import Document
from ance_fast.errors import DataError

SLICE_CHARACTERS = 1 << 25
"""Characters at which a slice ends early: 65,536 passages have fewer, as many web pages or books have far more."""

_CHUNK = 1024


class Hash(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Take in more."""


def as_documents(corpus: Iterable[Document | tuple[str, str] | str], first: int = 0) -> Iterator[Document]:
    """Documents of `corpus`; a text alone gets its number as its id, counted from `first`. Raises `DataError`."""
    for number, item in enumerate(corpus, first):
        if isinstance(item, Document):
            yield item
        elif isinstance(item, str):
            yield Document(str(number), item)
        elif isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
            yield Document(*item)
        else:
            raise DataError(f"corpus item {number}: expected a Document, an (id, text) pair or a text, got {item!r}")


def unique_documents(corpus: Iterable[Document | tuple[str, str] | str]) -> Iterator[Document]:
    """Documents of `corpus`; `DataError` names an id that comes twice."""
    if isinstance(corpus, Corpus):  # checks itself, and knows the lines
        yield from corpus
        return
    ids = UniqueIds()
    for document in as_documents(corpus):
        ids.add(document.id)
        yield document
    ids.refuse_duplicates()


class DocumentSlice(NamedTuple):
    """Consecutive documents of a corpus, and a hash of their content."""

    batches: list[pa.RecordBatch]
    content: str

    @property
    def rows(self) -> int:
        """Number of documents."""
        return sum(batch.num_rows for batch in self.batches)


def document_slices(
    documents: Iterator[Document], rows: int, characters: int = SLICE_CHARACTERS, content: Hash | None = None
) -> Iterator[DocumentSlice]:
    """Consecutive slices of `rows` documents; the last may be shorter, as may one that reaches `characters`.

    Where a slice ends depends on the documents before its end alone, so a corpus that grows keeps its whole slices.
    `content` is updated with every document.
    """
    while True:
        digest = hashlib.blake2b(digest_size=16)
        batches: list[pa.RecordBatch] = []
        missing, room = rows, characters
        while missing and room > 0 and (chunk := _chunk(documents, min(missing, _CHUNK), room)):
            encoded = encode_rows(chunk)
            digest.update(encoded)
            if content is not None:
                content.update(encoded)
            batches.append(to_arrow(chunk))
            missing -= len(chunk)
            room -= _characters(chunk)
        if not batches:
            return
        yield DocumentSlice(batches, digest.hexdigest())


def _chunk(documents: Iterator[Document], rows: int, room: int) -> list[Document]:
    """The next documents: `rows`, or fewer if their texts fill `room` characters."""
    chunk: list[Document] = []
    for document in islice(documents, rows):
        chunk.append(document)
        room -= _characters([document])
        if room <= 0:
            break
    return chunk


def _characters(documents: list[Document]) -> int:
    return sum(len(document.title) + len(document.text) for document in documents)
