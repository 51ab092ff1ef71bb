"""TREC run files, and the judgements they are scored against (`read_qrels`, from `qrels`)."""

from __future__ import annotations

import gzip
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ance_fast.artifacts import atomic_file
from ance_fast.data.qrels import read_qrels
from ance_fast.data.text_lines import read_lines
from ance_fast.errors import DataError

__all__ = ["Run", "RunLine", "best_first", "listed_twice", "read_qrels", "read_run", "read_run_lines", "write_run"]

logger = logging.getLogger(__name__)

# int() and float() would take "1_0" too.
_RANK = re.compile(r"[+-]?[0-9]{1,18}")

Run = dict[str, dict[str, float]]
"""Query id -> document id -> score, higher is better."""


class RunLine(NamedTuple):
    """One line of a run file."""

    number: int
    query_id: str
    document_id: str
    score: float


def read_run(path: str | Path) -> Run:
    """Read a run whole; forms and errors are those of `read_run_lines`, and a document listed twice is one too."""
    run: Run = {}
    for line in read_run_lines(path):
        scores = run.setdefault(line.query_id, {})
        if line.document_id in scores:
            raise listed_twice(path, line)
        scores[line.document_id] = line.score
    return run


def read_run_lines(path: str | Path) -> Iterator[RunLine]:
    """Stream a TREC run (`qid Q0 docid rank score tag`) or an MS MARCO run (`qid docid rank`, whose score is -rank).

    The form is taken from the first line. Ranks of TREC runs are ignored, as evaluation tools do: scores decide.
    Raises `DataError` with file and line: a wrong number of columns, a score that is no number.
    """
    columns = 0
    for number, line in read_lines(path):
        # Tabs win over blanks, so that ids which hold blanks survive (`write_run`).
        fields = line.split("\t") if line.count("\t") >= 2 else line.split()
        if not line.strip():
            continue
        columns = columns or len(fields)
        if columns not in (3, 6):
            raise DataError(
                f"{path}:{number}: expected `query Q0 document rank score tag` or `query document rank`, "
                f"got {columns} columns"
            )
        if len(fields) != columns:
            raise DataError(f"{path}:{number}: expected {columns} columns as in the first line, got {len(fields)}")
        query_id, document_id, value = fields[0], fields[-2 if columns == 3 else 2], fields[2 if columns == 3 else 4]
        try:
            if "_" in value or (columns == 3 and not _RANK.fullmatch(value.strip())):
                raise ValueError(value)
            score = -float(value) if columns == 3 else float(value)
        except ValueError:
            name = "rank" if columns == 3 else "score"
            raise DataError(f"{path}:{number}: {name} {value[:60]!r} is not a number") from None
        if math.isnan(score):
            raise DataError(f"{path}:{number}: the score is NaN, which has no place in an order")
        yield RunLine(number, query_id, document_id, score)


def best_first(scores: Mapping[str, float]) -> list[str]:
    """Documents by descending score, of equal scores the higher id first: the order in which trec_eval measures a run.

    Scores are equal when their float32 are, in which trec_eval holds them. None may be NaN.
    """
    with np.errstate(over="ignore"):  # beyond float32 is infinite there too
        single = dict(zip(scores, np.array(list(scores.values()), dtype=np.float32).tolist(), strict=True))
    # Two stable sorts, because the second key goes down as well and strings have no minus.
    return sorted(sorted(single, reverse=True), key=single.__getitem__, reverse=True)


def listed_twice(path: str | Path, line: RunLine) -> DataError:
    """The error of a run in which `line` names a document that the query had before."""
    return DataError(f"{path}:{line.number}: document {line.document_id!r} comes twice for query {line.query_id!r}")


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str = "ance_fast") -> None:
    """Write a TREC run, atomically: queries in the run's order, documents as `best_first` has them.

    Ranks count from 1 and scores keep every digit (`repr`), so that reading gives the same run. A name ending in `.gz`
    is compressed. Columns are separated by blanks, or by tabs when an id holds a blank: `read_run` reads both,
    trec_eval only ids without blanks, and a warning says so. Raises `DataError` for a NaN score and for empty ids or
    ones that hold tabs or line breaks.
    """
    path = Path(path)
    names = [tag, *run, *(document_id for scores in run.values() for document_id in scores)]
    blank = next((name for name in names if name.split() != [name]), None)
    separator = " " if blank is None else "\t"
    if blank is not None:
        logger.warning(
            "%s: ids such as %r hold blanks, so columns are separated by tabs; trec_eval reads no such ids", path, blank
        )
    _refuse_torn(tag, "tag", path)
    with (
        atomic_file(path) as staging,
        open(staging, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.name.endswith(".gz") else raw as file,
    ):
        for query_id, scores in run.items():
            _refuse_torn(query_id, "query id", path)
            for document_id, score in scores.items():
                _refuse_torn(document_id, "document id", path)
                if math.isnan(score):
                    raise DataError(f"{path}: the score of document {document_id!r} for query {query_id!r} is NaN")
            for rank, document_id in enumerate(best_first(scores), 1):
                columns = (query_id, "Q0", document_id, str(rank), repr(float(scores[document_id])), tag)
                file.write((separator.join(columns) + "\n").encode("utf-8"))


def _refuse_torn(value: str, what: str, path: Path) -> None:
    if not value.strip() or any(mark in value for mark in "\t\n\r\v\f"):
        raise DataError(f"{path}: {what} {value!r} is empty or holds tabs or line breaks, which a run cannot express")
