"""Negatives for the training queries of a data set, and the three files they can be written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ance_fast.data.ance_files import AnnTrainingData
from ance_fast.data.dataset import Dataset
from ance_fast.data.records import Document, Query
from ance_fast.data.token_corpus import TokenCorpus
from ance_fast.data.training_jsonl import TrainingRow, write_jsonl
from ance_fast.data.trec import Run
from ance_fast.errors import DataError
from ance_fast.index import Index
from ance_fast.mining.limits import Limits
from ance_fast.mining.search import Csr, Mined, mine_rows


@dataclass(frozen=True)
class Needs:
    """The training queries of a data set and their positives in an index.

    Attributes:
        queries: ids of those with a positive that is in the index, in the data set's order.
        positives: CSR (offsets int64 [n + 1], rows of the index int64).
    """

    dataset: Dataset
    queries: list[str]
    positives: Csr

    @property
    def texts(self) -> list[str]:
        """The text of each query."""
        return [self.dataset.queries[query] for query in self.queries]


@dataclass(frozen=True)
class TrainingNegatives:
    """Negatives of the queries of `needs`, as rows of `index`."""

    needs: Needs
    index: Index
    mined: Mined


def training_needs(dataset: Dataset, index: Index) -> Needs:
    """Which queries to mine for. Raises `DataError` if none has a positive in the index."""
    judged = dict.fromkeys(document for grades in dataset.qrels.values() for document in grades)
    rows = index.ids.find(judged)
    usable = dataset.training_qrels(rows)
    own = {
        query: [rows[document] for document, grade in usable.get(query, {}).items() if grade > 0]
        for query in dataset.queries
    }
    queries = [query for query, found in own.items() if found]
    if not queries:
        raise DataError(f"{dataset.name}: no query has a positive that is in the index; was it made from this corpus?")
    offsets = np.concatenate([[0], np.cumsum([len(own[query]) for query in queries])]).astype(np.int64)
    return Needs(dataset, queries, (offsets, np.array([row for query in queries for row in own[query]], np.int64)))


def mine_for_training(
    needs: Needs,
    index: Index,
    embeddings: np.ndarray,
    limits: Limits,
    count: int,
    *,
    sampling: str = "random",
    seed: int = 42,
    score_positives: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TrainingNegatives:
    """Mine for the queries of `needs`, whose embeddings are float32 [n, dim]; see `mine_rows`."""
    mined = mine_rows(
        index,
        embeddings,
        needs.positives,
        limits,
        count,
        sampling=sampling,
        seed=seed,
        score_positives=score_positives,
        progress=progress,
    )
    return TrainingNegatives(needs, index, mined)


def as_run(found: TrainingNegatives) -> Run:
    """Query id -> negative's document id -> score; queries without negatives are left out."""
    rows, scores = found.mined.rows, found.mined.scores
    run = {}
    for query, own, values in zip(found.needs.queries, rows, scores, strict=True):
        kept = own >= 0
        if kept.any():
            run[query] = dict(zip(found.index.ids.take(own[kept]), values[kept].tolist(), strict=True))
    return run


def write_training_jsonl(path: Path, found: TrainingNegatives, *, scores: bool = False) -> None:
    """Training JSONL with texts, a line a query; `scores` of the model beside them, if they were asked for.

    The corpus is read once more for the texts; only those that are needed are held.
    """
    documents = {row: document for row, (_, document) in _documents(found).items()}
    write_jsonl(path, _rows(found, documents, scores))


def as_ance(found: TrainingNegatives, *, seed: int = 42) -> AnnTrainingData:
    """Lines for microsoft/ANCE, one for each (query, positive), shuffled by `seed`.

    A query's offset is its place among the queries of `needs`, a passage's its row in the data set's corpus; of a data
    set of microsoft/ANCE's own, both are the numbers of its records. Queries without negatives are left out: its
    trainer cannot read their lines.
    """
    place, numbers = _places(found), np.arange(len(found.needs.queries))
    if found.needs.dataset.query_tokens is not None:
        numbers = found.needs.dataset.query_tokens.ids.positions(found.needs.queries)
    offsets, own = found.needs.positives
    owner = np.repeat(np.arange(len(found.needs.queries)), np.diff(offsets))
    counts = (found.mined.rows >= 0).sum(axis=1)
    lines = np.random.default_rng(seed).permutation(np.flatnonzero(counts[owner] > 0))
    rows = found.mined.rows[owner[lines]]
    return AnnTrainingData(
        numbers[owner[lines]],
        place[own[lines]],
        np.concatenate([[0], np.cumsum(counts[owner[lines]])]).astype(np.int64),
        place[rows[rows >= 0]],
    )


def _places(found: TrainingNegatives) -> np.ndarray:
    """The place in the corpus of each row of the index that is a positive or a negative, int64; -1 for the others."""
    corpus = found.needs.dataset.corpus
    place = np.full(len(found.index), -1, dtype=np.int64)
    if isinstance(corpus, TokenCorpus):
        wanted = _wanted(found)
        names = found.index.ids.take(wanted)
        place[wanted] = corpus.ids.positions(names)
        _refuse_missing(found, [name for name, row in zip(names, wanted, strict=True) if place[row] < 0])
    else:
        for row, (number, _) in _documents(found).items():
            place[row] = number
    return place


def _wanted(found: TrainingNegatives) -> np.ndarray:
    rows = found.mined.rows
    return np.unique(np.concatenate([found.needs.positives[1], rows[rows >= 0]]))


def _rows(found: TrainingNegatives, documents: dict[int, Document], scores: bool) -> Iterator[TrainingRow]:
    offsets, own = found.needs.positives
    for number, (query, text) in enumerate(zip(found.needs.queries, found.needs.texts, strict=True)):
        part = slice(offsets[number], offsets[number + 1])
        kept = found.mined.rows[number] >= 0
        yield TrainingRow(
            Query(query, text),
            [documents[row] for row in own[part].tolist()],
            [documents[row] for row in found.mined.rows[number][kept].tolist()],
            found.mined.positive_scores[part].tolist() if scores else None,
            found.mined.scores[number][kept].tolist() if scores else None,
        )


def _documents(found: TrainingNegatives) -> dict[int, tuple[int, Document]]:
    """Row of the index -> (place in the corpus, document), of all positives and negatives."""
    wanted = _wanted(found)
    names = dict(zip(found.index.ids.take(wanted), wanted.tolist(), strict=True))
    documents = {
        names[document.id]: (place, document)
        for place, document in enumerate(found.needs.dataset.corpus)
        if document.id in names
    }
    _refuse_missing(found, [name for name, row in names.items() if row not in documents])
    return documents


def _refuse_missing(found: TrainingNegatives, names: list[str]) -> None:
    if names:
        raise DataError(
            f"{found.needs.dataset.corpus.path}: has no document {names[0]!r}, which the index has "
            f"({len(names)} such); it was made from another corpus"
        )
