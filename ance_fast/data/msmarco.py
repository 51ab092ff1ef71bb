"""MS MARCO passage folders: `collection.tsv`, `queries.{split}.tsv`, `qrels.{split}.tsv`, triples; compressed or not.

collection.tsv and queries: `id <tab> text`; what a further tab leads in is left out, counted in a warning, as
microsoft/ANCE leaves it out. qrels: four columns. The splits that come in a small version, such as
`qrels.dev.small.tsv`, are found under their short name ("dev") where the large file is absent. TREC's test queries have
names of their own (`msmarco-test2019-queries.tsv`, `2019qrels-pass.txt`): splits "test2019" and "test2020". The split
"eval" has queries alone, whose labels only the leaderboard knows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from ance_fast.data.dataset import Corpus, Dataset, collect_queries
from ance_fast.data.input_files import COMPRESSED, find_file, has_file
from ance_fast.data.qrels import Qrels, read_qrels
from ance_fast.data.records import Document, IdTriple, Query, TextTriple
from ance_fast.data.text_lines import read_columns, warn_counted
from ance_fast.errors import DataError

logger = logging.getLogger(__name__)

UNLABELLED = "eval"
_OTHER_QUERIES = {year: (f"msmarco-{year}-queries.tsv",) for year in ("test2019", "test2020")}
_OTHER_QRELS = {year: (f"{year.removeprefix('test')}qrels-pass.txt",) for year in ("test2019", "test2020")}


def read_msmarco(
    path: str | Path, split: str | None = "dev", *, triples: bool = True, max_negatives: int = 100
) -> Dataset:
    """Read an MS MARCO folder. The corpus streams; queries and judgements of `split` are held.

    triples: read the negatives of `qidpidtriples.{split}*.tsv` where there is such a file, the first `max_negatives`
    distinct ones of each judged query (the full file names hundreds of millions). `split=None`: the corpus alone.
    Raises `DataError`: a missing file (the message lists what was looked for, and the splits there are), malformed
    lines.
    """
    folder = Path(path)
    corpus = Corpus(find_file(folder, "collection.tsv"), _documents, folder.name)
    if split is None:
        return Dataset(folder.name, corpus, {}, Qrels())
    named = [f"queries.{split}.tsv", f"queries.{split}.small.tsv", *_OTHER_QUERIES.get(split, ())]
    judged = [f"qrels.{split}.tsv", f"qrels.{split}.small.tsv", *_OTHER_QRELS.get(split, ())]
    if not has_file(folder, *judged):
        if split == UNLABELLED and has_file(folder, *named):
            file = find_file(folder, *named)
            return Dataset(folder.name, corpus, collect_queries(file, read_query_lines(file)), Qrels(), split)
        splits = sorted(file.name.split(".tsv")[0].removeprefix("qrels.") for file in folder.glob("qrels.*.tsv*"))
        raise DataError(
            f"{folder}: no split {split!r} (looked for {' and '.join(judged)}, plain, .gz or .zst); "
            f"available: {', '.join(splits) or 'none'}"
        )
    qrels = read_qrels(find_file(folder, *judged))
    file = find_file(folder, *named)
    queries = collect_queries(file, read_query_lines(file), qrels)
    forms = (sorted(folder.glob(f"qidpidtriples.{split}*.tsv{suffix}")) for suffix in ("", *COMPRESSED))
    files = next((files for files in forms if files), [])
    negatives = _negatives(files, queries, max_negatives) if triples and files else None
    return Dataset(folder.name, corpus, queries, qrels, split, negatives)


def read_triples(path: str | Path) -> Iterator[IdTriple]:
    """Stream `query id <tab> positive id <tab> negative id`. Raises `DataError` with file and line."""
    for line, fields in read_columns(path, 3):
        if not all(fields) or "\t" in fields[2]:
            raise DataError(f"{path}:{line}: expected three ids separated by tabs")
        yield IdTriple(*fields)


def read_text_triples(path: str | Path) -> Iterator[TextTriple]:
    """Stream `query <tab> positive text <tab> negative text` (triples.train.small.tsv). Raises `DataError`."""
    for _, fields in read_columns(path, 3):
        yield TextTriple(*fields)


def _negatives(files: list[Path], queries: dict[str, str], limit: int) -> dict[str, list[str]]:
    # A dictionary a query is an ordered set; interning lets the queries share one string a passage.
    found: dict[str, dict[str, None]] = {}
    for file in files:
        for triple in read_triples(file):
            if triple.query_id not in queries:
                continue
            negatives = found.setdefault(triple.query_id, {})
            if len(negatives) < limit:
                negatives[sys.intern(triple.negative_id)] = None
    return {query_id: list(negatives) for query_id, negatives in found.items()}


def _documents(path: Path) -> Iterator[tuple[int, Document]]:
    for line, (identifier, text) in _pairs(path):
        yield line, Document(identifier, text)


def read_query_lines(path: Path) -> Iterator[tuple[int, Query]]:
    """(Line number, query) of `id <tab> text` lines. Raises `DataError` with file and line."""
    for line, (identifier, text) in _pairs(path):
        yield line, Query(identifier, text)


def _pairs(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    for line, (identifier, text) in without_more(read_columns(path, 2), path):
        if not identifier:
            raise DataError(f"{path}:{line}: empty id")
        yield line, (identifier, text)


def without_more(lines: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of columns less what follows a tab in the last one, counted in a warning at their end."""
    more, first = 0, 0
    for line, fields in lines:
        if "\t" in fields[-1]:
            fields[-1] = fields[-1].partition("\t")[0]
            more, first = more + 1, first or line
        yield line, fields
    warn_counted(logger, more, "lines have more columns, which are left out", f"{path}:{first}")
