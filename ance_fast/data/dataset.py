"""What a reader returns: a corpus that streams, queries, judgements and, for training, negatives and scores.

A corpus is read anew on every iteration and never held in memory. Duplicate ids are found with 8 bytes a document: a
64-bit hash of each id goes into an array that is searched at geometrically growing sizes, and only when two hashes
agree is the file read a second time, to tell a duplicate from a collision and to name both lines.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ance_fast.data.qrels import IdTable, Qrels, drop_unknown
from ance_fast.data.records import Document, Query
from ance_fast.data.text_lines import warn_counted
from ance_fast.errors import DataError

logger = logging.getLogger(__name__)

_FIRST_CHECK = 1 << 12


class Corpus:
    """The documents of one file, streamed: each iteration opens the file again and yields `Document`s in file order.

    `parse(path)` yields (line number, document). The first iteration that reaches the end also checks for duplicate ids
    (`DataError` naming both lines) and warns once about documents that have neither title nor text; they are kept, so
    that their ids stay retrievable and judgements of them stay valid.
    """

    def __init__(
        self, path: str | Path, parse: Callable[[Path], Iterator[tuple[int, Document]]], name: str = ""
    ) -> None:
        self.path = Path(path)
        self.name = name or self.path.name
        self._parse = parse
        self._length: int | None = None

    def __iter__(self) -> Iterator[Document]:
        if self._length is not None:
            for _, document in self._parse(self.path):
                yield document
        else:
            yield from self._first_pass()

    def __len__(self) -> int:
        """Number of documents; the first call reads the file once, unless an iteration already reached its end."""
        if self._length is None:
            for _ in self._first_pass():
                pass
        assert self._length is not None
        return self._length

    @property
    def counted(self) -> int | None:
        """Number of documents if it is known already, else None: never reads the file."""
        return self._length

    def __bool__(self) -> bool:
        """True without reading the file, which `len` would do."""
        return True

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r})"

    def _first_pass(self) -> Iterator[Document]:
        hashes = array("q")
        check_at = _FIRST_CHECK
        empty, first_empty = 0, 0
        for line, document in self._parse(self.path):
            hashes.append(hash(document.id))
            if not document.full_text:
                empty += 1
                first_empty = first_empty or line
            if len(hashes) >= check_at:
                self._refuse_duplicates(hashes)
                check_at *= 2
            yield document
        self._refuse_duplicates(hashes)
        self._length = len(hashes)
        warn_counted(logger, empty, "documents have neither title nor text", f"{self.path}:{first_empty}")

    def _refuse_duplicates(self, hashes: array[int]) -> None:
        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not suspects:
            return
        lines: dict[str, int] = {}
        for line, document in self._parse(self.path):
            if hash(document.id) in suspects and lines.setdefault(document.id, line) != line:
                raise DataError(
                    f"{self.path}:{line}: document id {document.id!r} again, first at "
                    f"{self.path}:{lines[document.id]}; ids must be unique"
                )


@dataclass
class Dataset:
    """A retrieval data set.

    queries: id -> text, in the file's order; with judgements, only the judged ones. qrels: every judgement, also of
    documents the corpus lacks. negatives: query id -> ids of documents to train against. scores: query id -> document
    id -> score of a teacher. split: None when no judgements were asked for.
    """

    name: str
    corpus: Corpus
    queries: dict[str, str]
    qrels: Qrels = field(default_factory=Qrels)
    split: str | None = None
    negatives: dict[str, list[str]] | None = None
    scores: dict[str, dict[str, float]] | None = None

    def training_qrels(self, document_ids: IdTable | Collection[str]) -> Qrels:
        """The judgements usable for training against the corpus of `document_ids`; see `drop_unknown`."""
        return drop_unknown(self.qrels, self.queries, document_ids)


def collect_queries(path: Path, lines: Iterator[tuple[int, Query]], qrels: Qrels | None = None) -> dict[str, str]:
    """Query id -> text in file order; with `qrels`, only the queries judged there.

    Empty texts are kept and warned about, counted. Raises `DataError` for a duplicate id (naming both lines) and for a
    file that holds none of the judged queries.
    """
    queries: dict[str, str] = {}
    line_of: dict[str, int] = {}
    empty, first_empty = 0, 0
    for line, query in lines:
        if line_of.setdefault(query.id, line) != line:
            raise DataError(
                f"{path}:{line}: query id {query.id!r} again, first at {path}:{line_of[query.id]}; ids must be unique"
            )
        if qrels is not None and query.id not in qrels:
            continue
        if not query.text.strip():
            empty += 1
            first_empty = first_empty or line
        queries[query.id] = query.text
    warn_counted(logger, empty, "queries are empty", f"{path}:{first_empty}")
    if qrels and not queries:
        raise DataError(
            f"{path}: none of the {len(qrels)} judged queries of {qrels.path} is here: wrong file or id format?"
        )
    return queries
