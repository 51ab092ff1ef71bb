"""Passages that somebody retrieved for queries, to be ranked again: MS MARCO's `top1000` files and runs.

    query <tab> passage id <tab> query's text <tab> passage's text    top1000.dev, msmarco-passagetest2019-top1000.tsv
    query Q0 document rank score tag                                  msmarco-docdev-top100, any TREC run
    query <tab> document <tab> rank                                   an MS MARCO run

The first line decides. A `top1000` file brings its texts, so it is a data set by itself (`read_top1000`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ance_fast.data.dataset import Corpus, Dataset
from ance_fast.data.input_files import plain_name
from ance_fast.data.qrels import Qrels, read_qrels
from ance_fast.data.records import Document
from ance_fast.data.text_lines import read_columns, read_lines
from ance_fast.data.trec import Run, RunLine, listed_twice, read_run
from ance_fast.errors import DataError


class CandidateLine(NamedTuple):
    """One line of a `top1000` file."""

    number: int
    query_id: str
    document_id: str
    query: str
    text: str


def read_candidates(path: str | Path) -> Run:
    """Query id -> document id -> score, of any of the three forms.

    A `top1000` file has neither ranks nor scores: the score of a query's n-th line (from 1) is -n, which keeps the
    file's order. Raises `DataError` with file and line: a wrong number of columns, a document that comes twice.
    """
    if not has_texts(path):
        return read_run(path)
    run: Run = {}
    for line in read_candidate_lines(path):
        scores = run.setdefault(line.query_id, {})
        if line.document_id in scores:
            raise listed_twice(path, RunLine(line.number, line.query_id, line.document_id, 0.0))
        scores[line.document_id] = -float(len(scores) + 1)
    return run


def has_texts(path: str | Path) -> bool:
    """Whether a file is a `top1000` file, not a run: four columns or more of which the fourth is no rank."""
    for _, line in read_lines(path):
        if line.strip():
            fields = line.split("\t")
            return len(fields) >= 4 and not (len(fields) == 6 and _is_number(fields[3]) and _is_number(fields[4]))
    return False


def read_candidate_lines(path: str | Path) -> Iterator[CandidateLine]:
    """Stream a `top1000` file; tabs in a passage are kept. Raises `DataError` with file and line."""
    for number, (query_id, document_id, query, text) in read_columns(path, 4):
        if not query_id or not document_id:
            raise DataError(f"{path}:{number}: empty {'document' if query_id else 'query'} id")
        yield CandidateLine(number, query_id, document_id, query, text)


def read_top1000(path: str | Path, qrels: str | Path | None = None) -> Dataset:
    """The queries and the distinct passages of a `top1000` file, without the collection they come from.

    The corpus streams and keeps 16 bytes a passage to tell repeats from contradictions. `qrels`: a file of judgements.
    Raises `DataError` with file and line: malformed lines, an id that has two texts.
    """
    path = Path(path)
    queries: dict[str, str] = {}
    for line in read_candidate_lines(path):
        if queries.setdefault(line.query_id, line.query) != line.query:
            raise DataError(f"{path}:{line.number}: query {line.query_id!r} has another text than before")
    name = plain_name(path).removesuffix(".tsv")
    judged = Qrels() if qrels is None else read_qrels(qrels)
    return Dataset(name, Corpus(path, _distinct, name), queries, judged, "top1000")


def _distinct(path: Path) -> Iterator[tuple[int, Document]]:
    seen: dict[str, bytes] = {}
    for line in read_candidate_lines(path):
        digest = hashlib.blake2b(line.text.encode(), digest_size=16).digest()
        known = seen.setdefault(line.document_id, digest)
        if known != digest:
            raise DataError(f"{path}:{line.number}: passage {line.document_id!r} has another text than before")
        if known is digest:
            yield line.number, Document(line.document_id, line.text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
