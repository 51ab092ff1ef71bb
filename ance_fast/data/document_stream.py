"""Whatever a caller hands over as a corpus, as a stream of documents with unique ids, cut into slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from ance_fast.data.dataset import Corpus
from ance_fast.data.records import Document
from ance_fast.errors import DataError

_CHUNK = 1024
_FIRST_CHECK = 1 << 16


def _as_documents(corpus: Iterable[Document | tuple[str, str] | str]) -> Iterator[Document]:
    for number, item in enumerate(corpus):
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
    ids = _Ids()
    for document in _as_documents(corpus):
        ids.add(document.id)
        yield document
    ids.refuse_duplicates()


class _Ids:
    """Ids seen so far, in Arrow memory: a tenth of what a set of strings would take."""

    def __init__(self) -> None:
        self._recent: list[str] = []
        self._chunks: list[pa.Array] = []
        self._check_at = _FIRST_CHECK
        self._count = 0

    def add(self, identifier: str) -> None:
        """Remember an id; whenever their number has doubled, look for duplicates."""
        self._recent.append(identifier)
        self._count += 1
        if len(self._recent) == _CHUNK:
            self._flush()
        if self._count >= self._check_at:
            self.refuse_duplicates()
            self._check_at *= 2

    def refuse_duplicates(self) -> None:
        """Raise `DataError` naming an id that came twice."""
        self._flush()
        ids = pa.chunked_array(self._chunks, pa.large_string())
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        for entry in pc.value_counts(ids):
            if entry["counts"].as_py() > 1:
                raise DataError(f"document id {entry['values'].as_py()!r} comes twice; ids must be unique")

    def _flush(self) -> None:
        try:
            self._chunks.append(pa.array(self._recent, pa.large_string()))
        except UnicodeEncodeError as error:
            raise DataError(f"document id {error.object!r}: half of a surrogate pair is no character") from error
        self._recent = []


def document_slices(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Consecutive lists of `size` documents; the last may be shorter."""
    while slice_ := list(islice(documents, size)):
        yield slice_
