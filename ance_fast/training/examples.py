"""A data set as the trainer uses it: token stores and row numbers, no texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ance_fast.data.chunked_documents import ChunkedDocuments, StoreDocuments
from ance_fast.data.dataset import Dataset
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import DataError
from ance_fast.models.encoder import Encoder
from ance_fast.training.judgements import Grades, Judgements, find_judgements
from ance_fast.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Examples:
    """Training queries and the passages they are about.

    Where `passages` holds documents in chunks, what is relevant, negative or retrieved is a document and never a chunk:
    a row number then is the number of a document, of `corpus`.

    Query i's positives are `positive_rows[positive_offsets[i] : positive_offsets[i + 1]]`, ascending rows of `corpus`
    (both int64). `texts[i]` is its text, which only lexical retrieval needs; there are none of a data set of tokens.
    `given` holds the negatives the data set brings: (query index, passage row) pairs, int64 [m, 2], or None.
    `judgements`: what is known of other passages. `triples`: int [T, 3] query index, positive row, negative row, where
    the data set is a list of these. `answers`: query index -> strings that answer it, or None.
    """

    passages: TokenStore
    queries: TokenStore
    texts: list[str]
    positive_offsets: np.ndarray
    positive_rows: np.ndarray
    given: np.ndarray | None = None
    judgements: Judgements | None = None
    triples: np.ndarray | None = None
    answers: dict[int, list[str]] | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def documents(self) -> ChunkedDocuments | None:
        """Which rows of `passages` are chunks of which document; None where a passage is a row."""
        return self.passages.chunked

    @property
    def corpus(self) -> TokenStore | StoreDocuments:
        """The passages, or the documents they are chunks of: its length, ids and texts."""
        return self.passages if self.documents is None else StoreDocuments(self.passages, self.documents)

    def rows_of(self, passages: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """The rows of the token store that these (int64) are encoded from, and as offsets int64 [len(passages) + 1]
        whose they are; None where each has one."""
        return (None, passages) if self.documents is None else self.documents.rows_of(passages)

    @property
    def pairs(self) -> np.ndarray:
        """(query index, positive row), int64 [P, 2]."""
        return np.stack([np.repeat(np.arange(len(self)), np.diff(self.positive_offsets)), self.positive_rows], axis=1)

    def positives_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positives of some queries as CSR: offsets int64 [len(rows) + 1], passage rows int64."""
        starts, ends = self.positive_offsets[rows], self.positive_offsets[rows + 1]
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        flat = np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])
        return offsets, self.positive_rows[flat]


def prepare(
    dataset: Dataset,
    encoder: Encoder,
    path: Path,
    *,
    max_query_length: int | None = None,
    max_document_length: int | None = None,
    num_proc: int = 1,
    show_progress: bool = False,
    replace: bool = True,
    ranks: Ranks = ALONE,
    judged: Sequence[Grades] = (),
    last_positive: bool = False,
) -> Examples:
    """Tokenise the corpus once into the store `path`, in chunks if the encoder has them, and the training queries into
    memory.

    `judged`: judgements of the same queries beside the data set's own, by which false negatives are counted.
    `last_positive`: of a query's positives the last in the file of judgements counts, and the others as any passage.

    Without `replace`, a store of another corpus at `path` is refused instead of replaced. Of several `ranks` the first
    builds the store and the others open it.

    Raises `DataError` when no query has a known positive, or when every passage is a positive of some query and of no
    use as a negative (a corpus of one passage).
    """
    passages = corpus_store(
        dataset,
        encoder,
        path,
        max_length=max_document_length,
        num_proc=num_proc,
        show_progress=show_progress,
        replace=replace,
        ranks=ranks,
    )
    corpus = passages.corpus
    qrels = dataset.training_qrels(corpus.ids)
    positives = {
        query: sorted(document for document, grade in judged.items() if grade > 0)
        for query, judged in qrels.items()
        if query in dataset.queries
    }
    if last_positive:
        positives = {query: _last_positive(qrels[query]) for query in positives}
    ids = [query for query in dataset.queries if positives.get(query)]
    if len(corpus) < 2:
        raise DataError(f"{dataset.name}: the corpus has {len(corpus)} passage; negatives need at least 2")
    texts = [] if dataset.query_tokens is not None else [dataset.queries[query] for query in ids]
    queries = TokenStore.of_queries(
        dataset,
        ids,
        encoder.for_queries.tokenizer,
        max_length=max_query_length or encoder.max_query_length,
        prompt=encoder.query_prompt,
    )
    counts = [len(positives[query]) for query in ids]
    rows = corpus.positions([document for query in ids for document in positives[query]])
    owner = np.repeat(np.arange(len(ids)), counts)
    rows = rows[np.lexsort((rows, owner))]
    pairs = np.stack([owner, rows], axis=1)
    return Examples(
        passages,
        queries,
        texts,
        np.concatenate([[0], np.cumsum(counts)]),
        rows,
        _given(dataset, ids, corpus),
        find_judgements(ids, corpus, pairs, [dataset.qrels, *judged], count=len(corpus)),
        answers=_answers(dataset, ids),
    )


def corpus_store(
    dataset: Dataset,
    encoder: Encoder,
    path: Path,
    *,
    max_length: int | None = None,
    num_proc: int = 1,
    show_progress: bool = False,
    replace: bool = True,
    ranks: Ranks = ALONE,
) -> TokenStore:
    """The corpus tokenised into the store `path`: the first of `ranks` builds it, the others open it."""
    max_length, prompt = max_length or encoder.max_document_length, encoder.document_prompt
    built: list[TokenStore] = []  # a store cannot be sent: every process maps the files itself

    def build() -> None:
        store = TokenStore.build(
            dataset.corpus,
            encoder.tokenizer,
            path,
            max_length=max_length,
            prompt=prompt,
            chunks=encoder.chunks,
            num_proc=num_proc,
            show_progress=show_progress,
            replace=replace,
        )
        built.append(store)

    def opened() -> None:
        if not built:
            kept = {"tokenizer": encoder.tokenizer, "max_length": max_length, "prompt": prompt}
            built.append(TokenStore.open(path, **kept, chunks=encoder.chunks, verify=False))

    ranks.first(build)
    ranks.each(opened)
    (store,) = built
    return store


def _last_positive(grades: Mapping[str, int]) -> list[str]:
    return [document for document, grade in grades.items() if grade > 0][-1:]


def _answers(dataset: Dataset, ids: list[str]) -> dict[int, list[str]] | None:
    return None if dataset.answers is None else {row: dataset.answers.get(query, []) for row, query in enumerate(ids)}


def _given(dataset: Dataset, ids: list[str], corpus: TokenStore | StoreDocuments) -> np.ndarray | None:
    if not dataset.negatives:
        return None
    pairs = [(i, document) for i, query in enumerate(ids) for document in dataset.negatives.get(query, [])]
    rows = corpus.positions([document for _, document in pairs])
    owners = np.fromiter((i for i, _ in pairs), dtype=np.int64, count=len(pairs))
    return np.stack([owners, rows], axis=1)[rows >= 0]
