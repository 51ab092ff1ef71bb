"""Corpora in Parquet files, read a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ance_fast.data.dataset import Corpus, Dataset, Place
from ance_fast.data.document_fields import FieldNames, Fields, make_document
from ance_fast.data.input_files import list_files
from ance_fast.data.qrels import Qrels
from ance_fast.data.records import Document
from ance_fast.errors import DataError

_ROWS = 1024
_READ_BUFFER = 1 << 20  # bytes of a column chunk read at once; without it, whole chunks are


def read_parquet(
    path: str | Path, *, id: str | None = None, text: str | None = None, title: str | None = None
) -> Dataset:
    """A corpus from a Parquet file, a folder of them or a pattern; files count in the order of their names.

    id, text, title: columns, where their names are not the usual ones (`document_fields`). Ids may be integers.
    Raises `DataError` with file and, for a value, its row (from 0): missing columns, nulls, other types, damaged files.
    """
    files = list_files(path, ".parquet")
    names = FieldNames(id, text, title)
    corpus = Corpus(path, lambda _: _documents(files, names), Path(path).name.removesuffix(".parquet"))
    return Dataset(corpus.name, corpus, {}, Qrels())


def _documents(files: list[Path], names: FieldNames) -> Iterator[tuple[Place, Document]]:
    for file in files:
        try:
            yield from _rows(file, names)
        except FileNotFoundError:
            raise DataError(f"{file}: no such file") from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a whole Parquet file ({error})") from error


def _rows(file: Path, names: FieldNames) -> Iterator[tuple[Place, Document]]:
    with pq.ParquetFile(file, buffer_size=_READ_BUFFER) as table:
        schema = table.schema_arrow
        fields = names.among(schema.names, str(file))
        _check_types(schema, fields, file)
        columns = [name for name in fields if name is not None]
        row = 0
        for batch in table.iter_batches(_ROWS, columns=columns):
            values = [_values(batch.column(name), name, file, row) for name in columns]
            for cells in zip(*values, strict=True):
                where = f"{file}: row {row}"
                yield where, make_document(dict(zip(columns, cells, strict=True)), fields, where)
                row += 1


def _check_types(schema: pa.Schema, fields: Fields, file: Path) -> None:
    for what, name in zip(Fields._fields, fields, strict=True):
        if name is None:
            continue
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (_is_text(plain) or (what == "id" and pa.types.is_integer(plain))):
            raise DataError(f"{file}: column `{name}` holds {kind}, which is no {what}; name another with ?{what}=NAME")


def _is_text(kind: pa.DataType) -> bool:
    # Some writers leave out the mark that tells text from bytes.
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _values(column: pa.Array, name: str, file: Path, first: int) -> list[str | int | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        numbers: list[str | int | None] = column.to_pylist()
        return numbers
    # Parquet does not promise valid UTF-8, so text goes through bytes.
    texts: list[str | int | None] = []
    for row, value in enumerate(pc.cast(column, pa.large_binary()).to_pylist(), first):
        try:
            texts.append(None if value is None else value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: row {row}: `{name}` is not UTF-8 at byte {error.start}") from error
    return texts
