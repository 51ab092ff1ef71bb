"""Mining for a data set: what may be a negative, and what each file holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import ance_fast
from ance_fast.data import Dataset, Qrels, TokenStore, load_dataset, read_jsonl
from ance_fast.data.ance_cache_writer import write_ance_passages, write_ance_queries
from ance_fast.data.token_corpus import TokenCorpus
from ance_fast.errors import ConfigError, DataError
from ance_fast.index import Index
from ance_fast.mining import Limits
from ance_fast.mining.for_training import (
    TrainingNegatives,
    as_ance,
    as_run,
    mine_for_training,
    training_needs,
    write_training_jsonl,
)
from ance_fast.mining.search import mine_rows


@pytest.fixture(scope="module")
def dataset(wiki: Path) -> Dataset:
    return ance_fast.read_beir(wiki, split="train")


@pytest.fixture(scope="module")
def vectors(dataset: Dataset) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(dataset.corpus), 16)).astype(np.float32)


def mined(
    dataset: Dataset, vectors: np.ndarray, *, shuffled: bool = False, factory: str = "Flat", topk: int = 20
) -> TrainingNegatives:
    """Three negatives a query from random vectors, in an index whose rows may be in another order than the corpus."""
    order = np.random.default_rng(1).permutation(len(vectors)) if shuffled else np.arange(len(vectors))
    corpus = dataset.corpus
    ids = list(corpus.ids) if isinstance(corpus, TokenCorpus) else [document.id for document in corpus]
    index = Index.build(vectors[order], [ids[row] for row in order], factory=factory)
    needs = training_needs(dataset, index)
    queries = np.random.default_rng(2).standard_normal((len(needs.queries), 16)).astype(np.float32)
    exact = factory == "Flat"
    return mine_for_training(needs, index, queries, Limits(topk), 3, score_positives=exact)


def test_negatives_are_the_nearest_passages_without_the_positives(dataset: Dataset, vectors: np.ndarray) -> None:
    run = as_run(mined(dataset, vectors))
    ids = np.array([document.id for document in dataset.corpus])
    queries = np.random.default_rng(2).standard_normal((len(run), 16)).astype(np.float32)
    for query, embedding in zip(run, queries, strict=True):
        positives = [document for document, grade in dataset.qrels[query].items() if grade > 0]
        scores = np.where(np.isin(ids, positives), -np.inf, vectors.astype(np.float64) @ embedding)
        window = dict(zip(ids[np.argsort(-scores)[:20]], np.sort(scores)[::-1][:20], strict=True))
        assert len(run[query]) == 3
        for document, score in run[query].items():
            assert score == pytest.approx(window[document], rel=1e-5)


def test_the_order_of_the_index_changes_nothing(dataset: Dataset, vectors: np.ndarray) -> None:
    plain, shuffled = mined(dataset, vectors), mined(dataset, vectors, shuffled=True)
    assert as_run(plain) == as_run(shuffled)
    left, right = as_ance(plain), as_ance(shuffled)
    for name in ("queries", "positives", "offsets", "negatives"):
        assert (getattr(left, name) == getattr(right, name)).all()


def test_training_jsonl_holds_the_texts_of_positives_and_negatives(
    dataset: Dataset, vectors: np.ndarray, tmp_path: Path
) -> None:
    found = mined(dataset, vectors)
    write_training_jsonl(tmp_path / "t.jsonl", found, scores=True)
    again = read_jsonl(tmp_path / "t.jsonl")
    documents = {document.id: document for document in dataset.corpus}
    assert list(again.corpus) == [documents[document.id] for document in again.corpus]
    run = as_run(found)
    for query in found.needs.queries:
        assert again.queries[query] == dataset.queries[query]
        assert again.qrels[query].keys() == {d for d, grade in dataset.qrels[query].items() if grade > 0}
        assert (again.negatives or {})[query] == list(run[query])
        assert again.scores is not None
        assert {d: again.scores[query][d] for d in run[query]} == run[query]
    write_training_jsonl(tmp_path / "t.jsonl", found)
    assert read_jsonl(tmp_path / "t.jsonl").scores is None


def test_ance_lines_are_rows_of_the_corpus_for_every_query_and_positive(dataset: Dataset, vectors: np.ndarray) -> None:
    found = mined(dataset, vectors)
    data, run = as_ance(found), as_run(found)
    ids = [document.id for document in dataset.corpus]
    lines = {
        (found.needs.queries[data.queries[line]], ids[data.positives[line]]): [ids[row] for row in data.of(line)]
        for line in range(len(data))
    }
    expected = {
        (query, document): list(run[query])
        for query in found.needs.queries
        for document, grade in dataset.qrels[query].items()
        if grade > 0
    }
    assert lines == expected
    assert (np.diff(data.queries) < 0).any()


def test_an_index_of_another_corpus_is_refused(dataset: Dataset, vectors: np.ndarray) -> None:
    with pytest.raises(DataError, match="none of the"):
        training_needs(dataset, Index.build(vectors))
    ids = [document.id for document in dataset.corpus]
    index = Index.build(np.concatenate([vectors, vectors * 9]), [*ids, *(f"new {name}" for name in ids)])
    needs = training_needs(dataset, index)
    queries = np.random.default_rng(2).standard_normal((len(needs.queries), 16)).astype(np.float32)
    with pytest.raises(DataError, match="which the index has"):
        as_ance(mine_for_training(needs, index, queries, Limits(20), 3))


def test_an_approximate_index_serves_without_margins_and_not_with_them(dataset: Dataset, vectors: np.ndarray) -> None:
    found = mined(dataset, vectors, factory="HNSW16")
    assert (found.mined.rows >= 0).all()
    queries = np.zeros((len(found.needs.queries), 16), dtype=np.float32)
    with pytest.raises(ConfigError, match="Flat"):
        mine_for_training(found.needs, found.index, queries, Limits(20, absolute_margin=0.0), 3)


def test_a_query_that_is_near_nothing_else_gets_what_there_is() -> None:
    index = Index.build(np.eye(3, dtype=np.float32))
    positives = (np.array([0, 2, 5]), np.array([0, 1, 0, 1, 2]))
    found = mine_rows(index, np.eye(3, dtype=np.float32)[:2], positives, Limits(10), 2)
    assert found.rows.tolist() == [[2, -1], [-1, -1]]
    assert found.scores.tolist() == [[0.0, -np.inf], [-np.inf, -np.inf]]


def test_blocks_of_queries_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    index = Index.build(draw.standard_normal((60, 8)).astype(np.float32))
    queries = draw.standard_normal((50, 8)).astype(np.float32)
    positives = (np.arange(51), draw.integers(0, 60, 50))
    limits = Limits(20, range_min=2, relative_margin=0.1)

    def once() -> tuple[list[list[int]], dict[str, int]]:
        found = mine_rows(index, queries, positives, limits, 4, sampling="random", room=3)
        return found.rows.tolist(), found.removed

    whole = once()
    monkeypatch.setattr("ance_fast.mining.search.BLOCK_QUERIES", 7)
    assert once() == whole


def test_room_for_positives_makes_the_window_of_a_search_that_finds_them_too() -> None:
    cut = 0
    for seed in range(150):
        draw = np.random.default_rng(seed)
        vectors = draw.standard_normal((14, 4)).astype(np.float32)
        query = draw.standard_normal((1, 4)).astype(np.float32)
        own = draw.choice(14, 4, replace=False)
        scores = vectors @ query[0]
        ranking = np.argsort(-scores)
        expected = [row for row in ranking[: 3 + 5] if row not in own and scores[row] <= 0][:3]
        cut += len(expected) < 3
        positives = (np.array([0, 4]), own)
        found = mine_rows(Index.build(vectors), query, positives, Limits(3, max_score=0.0), 3, room=5)
        assert found.rows[0].tolist() == expected + [-1] * (3 - len(expected))
    assert 20 < cut < 150


def test_random_draws_stay_within_the_window() -> None:
    index = Index.build(np.arange(30, dtype=np.float32)[::-1, None].copy())
    queries, none = np.ones((40, 1), dtype=np.float32), (np.zeros(41, dtype=np.int64), np.zeros(0, dtype=np.int64))
    found = mine_rows(index, queries, none, Limits(10, range_min=4), 3, sampling="random", room=6)
    assert set(found.rows.ravel().tolist()) == {4, 5, 6, 7, 8, 9}
    assert (np.diff(found.rows, axis=1) > 0).all()


def test_of_a_cache_of_microsoft_ance_the_numbers_are_those_of_its_records(
    dataset: Dataset, vectors: np.ndarray, minilm: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    documents = {document.id: document.full_text for document in dataset.corpus}
    passages = TokenStore.from_texts(list(documents.values()), tokenizer, ids=list(documents), max_length=16)
    queries = TokenStore.of_queries(dataset, list(dataset.queries), tokenizer, max_length=16)
    others = list(dataset.queries)[1:]
    judged = {query: dataset.qrels[query] for query in others}  # the first has no positive, but a record
    write_ance_passages(tmp_path, passages, tokenizer.pad_token_id)
    write_ance_queries(tmp_path, "train", queries, judged, passages, tokenizer.pad_token_id)
    cached = load_dataset(f"ance-cache:{tmp_path}")
    found = mined(cached, vectors, shuffled=True)
    data, texts = as_ance(found), as_ance(mined(replace(dataset, qrels=Qrels(judged)), vectors))
    assert 0 not in data.queries
    np.testing.assert_array_equal(data.queries, texts.queries + 1)
    for name in ("positives", "offsets", "negatives"):
        np.testing.assert_array_equal(getattr(data, name), getattr(texts, name))
    with pytest.raises(DataError, match="holds tokens and no texts"):
        write_training_jsonl(tmp_path / "negatives.jsonl", found)
    other = Index.build(vectors, ["0", *(f"x{row}" for row in range(1, len(vectors)))])
    needs = training_needs(replace(cached, qrels=Qrels({"1": {"0": 1}})), other)
    lost = mine_for_training(needs, other, vectors[:1], Limits(20), 3)
    with pytest.raises(DataError, match="has no document 'x.*; it was made from another corpus"):
        as_ance(lost)
