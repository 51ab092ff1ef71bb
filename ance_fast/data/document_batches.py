"""Documents as Arrow columns: how a shard's worth of them waits for the tokenizer, travels to a worker and is stored.

They take a third of what Python objects take, and are released at once when they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from ance_fast.data.records import Document
from ance_fast.errors import DataError

SCHEMA = pa.schema([pa.field(name, pa.large_string(), nullable=False) for name in ("id", "title", "text")])


def to_arrow(documents: Sequence[Document]) -> pa.RecordBatch:
    """Columns `id`, `title`, `text` of documents that `encode_rows` accepts."""
    columns = [[getattr(document, name) for document in documents] for name in SCHEMA.names]
    return pa.RecordBatch.from_arrays([pa.array(column, pa.large_string()) for column in columns], schema=SCHEMA)


def from_arrow(batches: Iterable[pa.RecordBatch], rows: int = 1024) -> Iterator[Document]:
    """The documents of batches with these columns (and others), made a few `rows` at a time."""
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            part = batch.slice(start, rows)
            columns = (part.column(name).to_pylist() for name in ("id", "text", "title"))
            yield from map(Document, *columns)


def encode_rows(documents: Sequence[Document]) -> bytes:
    """The bytes that stand for documents when content is hashed: lengths, then id, title and text in UTF-8.

    Raises `DataError` for text that UTF-8 cannot hold.
    """
    parts: list[bytes] = []
    for document in documents:
        try:
            fields = [part.encode("utf-8") for part in (document.id, document.title, document.text)]
        except UnicodeEncodeError as error:
            raise DataError(f"document {document.id!r}: half of a surrogate pair at character {error.start}") from error
        parts.append(b"%d %d %d\n" % (len(fields[0]), len(fields[1]), len(fields[2])))
        parts += fields
    return b"".join(parts)
