"""What a reader returns: a corpus that streams, queries, judgements and, for training, negatives and scores.

A corpus is read anew on every iteration and never held in memory. Duplicate ids are found with 8 bytes a document
(`duplicate_ids`); only when two hashes agree is the file read a second time, to tell a duplicate from a collision and
to name both lines. A pipe cannot be read again, so its ids are kept, in Arrow memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ance_fast.data.duplicate_ids import IdHashes, UniqueIds, id_hash
from ance_fast.data.qrels import IdTable, Qrels, drop_unknown
from ance_fast.data.records import Document, Query
from ance_fast.data.text_lines import warn_counted
from ance_fast.errors import DataError

if TYPE_CHECKING:
    from ance_fast.data.token_corpus import TokenCorpus

logger = logging.getLogger(__name__)

Place = int | str
"""Where a document stands: its line in the corpus's file, or, for other sources, a text such as "a.parquet: row 7"."""


class Corpus:
    """The documents of one source, streamed: each iteration opens it again and yields `Document`s in its order.

    `parse(path)` yields (place, document). The first iteration that reaches the end also checks for duplicate ids
    (`DataError` naming both places) and warns once about documents that have neither title nor text; they are kept, so
    that their ids stay retrievable and judgements of them stay valid.

    `once`: the source is a pipe. A second iteration raises `DataError` instead of yielding nothing.
    """

    def __init__(
        self,
        path: str | Path,
        parse: Callable[[Path], Iterator[tuple[Place, Document]]],
        name: str = "",
        *,
        once: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = name or self.path.name
        self._parse = parse
        self._length: int | None = None
        self._once = once
        self._opened = False

    def __iter__(self) -> Iterator[Document]:
        if self._once:
            yield from self._only_pass()
        elif self._length is not None:
            for _, document in self._parse(self.path):
                yield document
        else:
            yield from self._first_pass()

    def __len__(self) -> int:
        """Number of documents; the first call reads the source once, unless an iteration already reached its end.

        Raises `TypeError` for a pipe that was not read yet, as `len` of any stream does: `list` then does without.
        """
        if self._length is None:
            if self._once:
                raise TypeError(f"{self.path}: the number of documents in a pipe is known only after its end")
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
        hashes = IdHashes()
        empty = _EmptyDocuments()
        for place, document in self._parse(self.path):
            empty.look_at(place, document)
            if hashes.add(document.id):
                self._refuse_duplicates(hashes)
            yield document
        self._refuse_duplicates(hashes)
        self._length = len(hashes)
        warn_counted(logger, empty.count, "documents have neither title nor text", self._where(empty.first))

    def _only_pass(self) -> Iterator[Document]:
        if self._opened:
            raise DataError(
                f"{self.path}: a pipe can be read only once; make a token store from it with `ance-fast tokenize`"
            )
        self._opened = True
        ids = UniqueIds(self._where)
        empty = _EmptyDocuments()
        for place, document in self._parse(self.path):
            empty.look_at(place, document)
            ids.add(document.id, int(place))
            yield document
        ids.refuse_duplicates()
        self._length = len(ids)
        warn_counted(logger, empty.count, "documents have neither title nor text", self._where(empty.first))

    def _refuse_duplicates(self, hashes: IdHashes) -> None:
        suspects = hashes.repeated()
        if not suspects:
            return
        places: dict[str, Place] = {}
        for place, document in self._parse(self.path):
            if id_hash(document.id) not in suspects:
                continue
            first = places.get(document.id)
            if first is not None:
                raise DataError(
                    f"{self._where(place)}: document id {document.id!r} again, first at {self._where(first)}; "
                    "ids must be unique"
                )
            places[document.id] = place

    def _where(self, place: Place) -> str:
        return place if isinstance(place, str) else f"{self.path}:{place}"


class _EmptyDocuments:
    """Counts documents without title and text, and remembers the place of the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Place = 0

    def look_at(self, place: Place, document: Document) -> None:
        if not document.text.strip() and not document.title.strip():
            self.first = self.first if self.count else place
            self.count += 1


@dataclass
class Dataset:
    """A retrieval data set. A corpus alone (`tsv:`, `parquet:`, a pipe, ...) has neither queries nor judgements.

    queries: id -> text, in the file's order; with judgements, only the judged ones. query_tokens: the same queries
    where others tokenised them and there are no texts. qrels: every judgement, also of documents the corpus lacks.
    negatives: query id -> ids of documents to train against. scores: query id -> document id -> score of a teacher.
    answers: query id -> strings that answer it. split: None when no judgements were asked for. triples: a file of text
    triples, which training goes through in its order; there are then no queries and judgements beside it.
    """

    name: str
    corpus: Corpus
    queries: Mapping[str, str]
    qrels: Qrels = field(default_factory=Qrels)
    split: str | None = None
    negatives: dict[str, list[str]] | None = None
    scores: dict[str, dict[str, float]] | None = None
    query_tokens: TokenCorpus | None = None
    triples: Path | None = None
    answers: dict[str, list[str]] | None = None

    def training_qrels(self, document_ids: IdTable | Collection[str]) -> Qrels:
        """The judgements usable for training against the corpus of `document_ids`; see `drop_unknown`."""
        if not self.queries and not self.qrels:
            raise DataError(f"{self.corpus.path}: holds passages alone; training needs queries and judgements as well")
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
