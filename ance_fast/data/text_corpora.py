"""Corpora in text files, one passage a line: TSV, JSON Lines and plain text; from a pipe, whichever of these it is.

    tsv    id <tab> text, or id <tab> title <tab> text, or any columns below a header that names them
    jsonl  {"_id": "d1", "title": "optional", "text": "..."} with the names of `document_fields`
    text   one text a line; ids are the numbers of the lines, from 0

A reader takes a file, a folder or a pattern; several files are one corpus, in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ance_fast.data.dataset import Corpus, Dataset, Place
from ance_fast.data.document_fields import ID_NAMES, TEXT_NAMES, TITLE_NAMES, FieldNames, Fields, make_document
from ance_fast.data.input_files import is_pipe, list_files, plain_name
from ance_fast.data.qrels import Qrels
from ance_fast.data.records import Document
from ance_fast.data.text_lines import parse_json, read_lines
from ance_fast.errors import DataError

Lines = Iterator[tuple[int, str]]
Parser = Callable[[Lines, Path], Iterator[tuple[int, Document]]]


def read_tsv(path: str | Path) -> Dataset:
    """A corpus of `id <tab> text` or `id <tab> title <tab> text` lines; the first line decides which.

    A first line that consists of names (`id`, `text`, `title`, ...: DPR's passages have one) says the order of the
    columns instead, and columns of other names are ignored. Tabs in the last column are kept.
    Raises `DataError` with file and line.
    """
    return _dataset(path, (".tsv",), tsv_documents)


def read_corpus_jsonl(
    path: str | Path, *, id: str | None = None, text: str | None = None, title: str | None = None
) -> Dataset:
    """A corpus of JSON objects, one a line, as BEIR, Tevatron, Pyserini and MS MARCO v2 write them.

    id, text, title: names of the fields where they are not the usual ones (`document_fields`).
    Raises `DataError` with file and line.
    """
    names = FieldNames(id, text, title)
    return _dataset(path, (".jsonl", ".ndjson"), lambda lines, file: jsonl_documents(lines, file, names))


def read_text(path: str | Path) -> Dataset:
    """A corpus of one text a line. Ids are line numbers from 0; blank lines are skipped. Raises `DataError`."""
    return _dataset(path, (".txt",), text_documents)


def read_pipe(path: str | Path, *, id: str | None = None, text: str | None = None, title: str | None = None) -> Dataset:
    """A corpus from a pipe (`input_files.STDIN` or another): JSON Lines, TSV or plain text, as its first line says."""
    names = FieldNames(id, text, title)

    def documents(lines: Lines, file: Path) -> Iterator[tuple[int, Document]]:
        skipped = (line for line in lines if line[1] and not line[1].isspace())
        first = next(skipped, None)
        if first is None:
            return
        lines = chain([first], skipped)
        if first[1].lstrip().startswith("{"):
            yield from jsonl_documents(lines, file, names)
        else:
            yield from (tsv_documents if "\t" in first[1] else text_documents)(lines, file)

    return _dataset(path, (), documents)


def tsv_documents(lines: Lines, path: Path) -> Iterator[tuple[int, Document]]:
    """(Line number, document) of lines as `read_tsv` describes."""
    order: tuple[int, int, int | None] | None = None  # columns of id, text, title
    width = 0
    for number, line in lines:
        if not line or line.isspace():
            continue
        if order is None:
            first = line.split("\t")
            width = len(first)
            header = _header(first)
            order = header or _usual_order(width, f"{path}:{number}")
            if header:
                continue
        columns = line.split("\t", width - 1)
        if len(columns) != width:
            raise DataError(f"{path}:{number}: expected {width} columns as in the first line, got {len(columns)}")
        identifier, text, title = order
        if not columns[identifier]:
            raise DataError(f"{path}:{number}: empty id")
        yield number, Document(columns[identifier], columns[text], "" if title is None else columns[title])


def jsonl_documents(lines: Lines, path: Path, names: FieldNames) -> Iterator[tuple[int, Document]]:
    """(Line number, document) of lines as `read_corpus_jsonl` describes."""
    fields: Fields | None = None
    for number, value in parse_json(lines, path):
        where = f"{path}:{number}"
        if fields is None:
            fields = names.among(value, where)
            # A title may be missing in the first record and present in others.
            fields = fields._replace(title=fields.title or TITLE_NAMES[0])
        yield number, make_document(value, fields, where)


def text_documents(lines: Lines, path: Path) -> Iterator[tuple[int, Document]]:
    """(Line number, document) of lines as `read_text` describes."""
    for number, line in lines:
        if line and not line.isspace():
            yield number, Document(str(number - 1), line)


def _dataset(path: str | Path, endings: tuple[str, ...], parse: Parser) -> Dataset:
    files = [Path(path)] if is_pipe(Path(path)) else list_files(path, *endings)
    if len(files) == 1:
        name = plain_name(files[0]).rpartition(".")[0] or files[0].name
        corpus = Corpus(files[0], lambda file: parse(read_lines(file), file), name, once=is_pipe(files[0]))
    else:
        corpus = Corpus(path, lambda _: _in_turn(files, parse))
    return Dataset(corpus.name, corpus, {}, Qrels())


def _in_turn(files: list[Path], parse: Parser) -> Iterator[tuple[Place, Document]]:
    for file in files:
        for number, document in parse(read_lines(file), file):
            yield f"{file}:{number}", document


def _header(columns: list[str]) -> tuple[int, int, int | None] | None:
    """The columns of id, text and title if these are the names of a header, else None."""

    def find(names: tuple[str, ...]) -> int | None:
        return next((columns.index(name) for name in names if name in columns), None)

    identifier, text = find(ID_NAMES), find(TEXT_NAMES)
    return None if identifier is None or text is None else (identifier, text, find(TITLE_NAMES))


def _usual_order(width: int, where: str) -> tuple[int, int, int | None]:
    if width == 2:
        return 0, 1, None
    if width == 3:
        return 0, 2, 1
    raise DataError(
        f"{where}: expected `id <tab> text` or `id <tab> title <tab> text`, got {width} column{'s'[: width != 1]}; "
        "name other columns in a first line, e.g. id <tab> url <tab> title <tab> text"
    )
