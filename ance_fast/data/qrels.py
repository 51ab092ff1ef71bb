"""Relevance judgements: reading them, and the view of them a training run can use.

A grade is an integer; above 0 means relevant, 0 and below mean judged and not relevant.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ance_fast.data.text_lines import read_lines, warn_counted
from ance_fast.errors import DataError

logger = logging.getLogger(__name__)


class Judgement(NamedTuple):
    """One line of a qrels file."""

    line: int
    query_id: str
    document_id: str
    grade: int


class Qrels(dict[str, dict[str, int]]):
    """Query id -> document id -> grade, which remembers its file so that later messages can name file and line."""

    def __init__(
        self,
        judgements: dict[str, dict[str, int]] | None = None,
        *,
        path: Path | None = None,
        reread: Callable[[Path], Iterator[Judgement]] | None = None,
    ) -> None:
        super().__init__(judgements or {})
        self.path = path
        self._reread = reread

    def where(self, query_id: str, document_id: str | None = None) -> str:
        """`file:line` of the first judgement of `query_id` (of this document, if given), by reading the file again."""
        name = f"query {query_id!r}" if document_id is None else f"query {query_id!r}, document {document_id!r}"
        if self.path is None or self._reread is None:
            return name
        for judgement in self._reread(self.path):
            if judgement.query_id == query_id and document_id in (None, judgement.document_id):
                return f"{self.path}:{judgement.line}"
        return f"{self.path}: {name}"


@runtime_checkable
class IdTable(Protocol):
    """What finds the rows of many ids at once: a token store, or its `ids`."""

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id, int64, -1 where unknown."""


def read_qrels(path: str | Path) -> Qrels:
    """Read TREC (`qid 0 docid grade`) or BEIR (`qid <tab> docid <tab> grade`) judgements, with or without header.

    The form is taken from the file's first line. A line that repeats an earlier one counts once and is warned about.

    Raises `DataError` with file and line for a wrong number of columns, a grade that is no integer, or two lines that
    contradict each other (both lines are named).
    """
    path = Path(path)
    return qrels_from_judgements(path, read_judgements)


def qrels_from_judgements(path: Path, read: Callable[[Path], Iterator[Judgement]]) -> Qrels:
    """Gather what `read(path)` yields into `Qrels`, checking for repeated and contradictory lines."""
    qrels = Qrels(path=path, reread=read)
    repeated, first_repeated = 0, 0
    for line, query_id, document_id, grade in read(path):
        grades = qrels.setdefault(query_id, {})
        if document_id not in grades:
            grades[document_id] = grade
        elif grades[document_id] == grade:
            repeated += 1
            first_repeated = first_repeated or line
        else:
            raise DataError(
                f"{path}:{line}: grade {grade} for query {query_id!r}, document {document_id!r}, but grade "
                f"{grades[document_id]} at {qrels.where(query_id, document_id)}; keep one of the two"
            )
    warn_counted(logger, repeated, "judgements repeat an earlier line and count once", f"{path}:{first_repeated}")
    return qrels


def read_judgements(path: str | Path) -> Iterator[Judgement]:
    """Stream the lines of a qrels file in either form of `read_qrels`."""
    columns = 0
    separator: str | None = None
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        if not columns:
            # Tabs decide, so that BEIR ids may hold spaces; TREC files are separated by any white space.
            separator = "\t" if line.count("\t") >= 2 else None
            columns = len(line.split(separator))
            if columns not in (3, 4):
                raise DataError(
                    f"{path}:{number}: expected `query 0 document grade` or `query <tab> document <tab> grade`, "
                    f"got {columns} columns"
                )
            if line.split(separator)[-1].strip().isalpha():  # a header such as `query-id corpus-id score`
                continue
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != columns:
            raise DataError(f"{path}:{number}: expected {columns} columns as in the first line, got {len(fields)}")
        query_id, document_id = fields[0], fields[-2]
        if not query_id or not document_id:
            raise DataError(f"{path}:{number}: empty {'document' if query_id else 'query'} id")
        try:
            grade = int(fields[-1])
        except ValueError:
            raise DataError(f"{path}:{number}: grade {fields[-1]!r} is not an integer") from None
        yield Judgement(number, query_id, document_id, grade)


def drop_unknown(qrels: Qrels, queries: Collection[str], document_ids: IdTable | Collection[str]) -> Qrels:
    """The judgements a training run can use: known queries with a relevant document, known documents.

    Each kind of loss (queries without a text, documents outside the corpus, queries left without a relevant document)
    is one counted warning with the file and line of the first. Evaluation must keep the full `qrels` instead: a
    relevant document that the corpus lacks is a document the system missed.

    queries: ids (a mapping's keys will do). document_ids: a `TokenStore`, its `ids`, or any collection of ids.
    Raises `DataError` if nothing usable is left.
    """
    judged = list(dict.fromkeys(document for grades in qrels.values() for document in grades))
    known = set(_known(judged, document_ids))
    if judged and not known:
        raise DataError(
            f"{qrels.path or 'qrels'}: none of the {len(judged)} judged ids is in the corpus: "
            f"wrong corpus or id format? (e.g. {judged[0]!r})"
        )
    usable = Qrels(path=qrels.path, reread=qrels._reread)
    without_text: list[str] = []
    without_positive: list[str] = []
    unknown: list[tuple[str, str]] = []
    for query_id, grades in qrels.items():
        unknown += [(query_id, document) for document in grades if document not in known]
        if query_id not in queries:
            without_text.append(query_id)
            continue
        kept = {document: grade for document, grade in grades.items() if document in known}
        if any(grade > 0 for grade in kept.values()):
            usable[query_id] = kept
        else:
            without_positive.append(query_id)
    _warn_first(qrels, unknown, "judgements name a document that is not in the corpus")
    _warn_first(qrels, [(query,) for query in without_text], "judged queries have no text")
    _warn_first(qrels, [(query,) for query in without_positive], "queries have no relevant document in the corpus")
    if not usable:
        raise DataError(f"{qrels.path or 'qrels'}: no query has both a text and a relevant document in the corpus")
    return usable


def _known(judged: list[str], document_ids: IdTable | Collection[str]) -> Iterable[str]:
    if isinstance(document_ids, IdTable):
        rows = document_ids.positions(judged)
        return (document for document, row in zip(judged, rows.tolist(), strict=True) if row >= 0)
    ids = set(document_ids) if isinstance(document_ids, (list, tuple)) else document_ids
    return (document for document in judged if document in ids)


def _warn_first(qrels: Qrels, lost: Sequence[Sequence[str]], what: str) -> None:
    if lost:
        warn_counted(logger, len(lost), what, qrels.where(*lost[0]))
