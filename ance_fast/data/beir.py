"""BEIR folders: `corpus.jsonl`, `queries.jsonl`, `qrels/{split}.tsv`, each plain, `.gz` or `.zst`.

corpus.jsonl: {"_id": "d1", "title": "optional", "text": "..."} a line; queries.jsonl: {"_id": "q1", "text": "..."};
qrels: `query-id <tab> corpus-id <tab> score`, with or without that header. Other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ance_fast.data.dataset import Corpus, Dataset, collect_queries
from ance_fast.data.document_fields import Fields, id_field, make_document, text_field
from ance_fast.data.input_files import find_file, has_file
from ance_fast.data.qrels import Qrels, read_qrels
from ance_fast.data.records import Document, Query
from ance_fast.data.text_lines import read_json_lines
from ance_fast.errors import DataError

_FIELDS = Fields("_id", "text", "title")


def read_beir(path: str | Path, split: str | None = "test") -> Dataset:
    """Read a BEIR folder. The corpus streams; queries and judgements of `split` are held.

    `split=None` reads no judgements and every query (none if the folder has no queries file).
    Raises `DataError`: a missing file, a split that is not there (the message lists those that are), malformed lines.
    """
    folder = Path(path)
    corpus = Corpus(find_file(folder, "corpus.jsonl"), _documents, folder.name)
    if split is None:
        queries: dict[str, str] = {}
        if has_file(folder, "queries.jsonl"):
            file = find_file(folder, "queries.jsonl")
            queries = collect_queries(file, _queries(file))
        return Dataset(folder.name, corpus, queries, Qrels())
    file = find_file(folder, "queries.jsonl")
    if not has_file(folder / "qrels", f"{split}.tsv"):
        found = sorted(file.name.partition(".tsv")[0] for file in (folder / "qrels").glob("*.tsv*"))
        raise DataError(f"{folder / 'qrels'}: no split {split!r}; available: {', '.join(found) or 'none'}")
    qrels = read_qrels(find_file(folder / "qrels", f"{split}.tsv"))
    return Dataset(folder.name, corpus, collect_queries(file, _queries(file), qrels), qrels, split)


def _documents(path: Path) -> Iterator[tuple[int, Document]]:
    for line, value in read_json_lines(path):
        where = f"{path}:{line}"
        yield line, make_document(value, _FIELDS, where)


def _queries(path: Path) -> Iterator[tuple[int, Query]]:
    for line, value in read_json_lines(path):
        where = f"{path}:{line}"
        yield line, Query(id_field(value, "_id", where), text_field(value, "text", where))
