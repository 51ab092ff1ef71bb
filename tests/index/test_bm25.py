from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.evaluation import evaluate
from ance_fast.index import Bm25

WORDS = ["apple", "pear", "plum", "fig", "kiwi"]
documents = st.lists(st.lists(st.sampled_from(WORDS), max_size=6), min_size=1, max_size=8)


def lucene(corpus: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    """Kamphuis et al. 2020, table 1, Lucene (accurate document lengths)."""
    average = sum(map(len, corpus)) / len(corpus)
    scores = []
    for words in corpus:
        score = 0.0
        for word in query:
            holding = sum(word in other for other in corpus)
            idf = math.log(1 + (len(corpus) - holding + 0.5) / (holding + 0.5))
            frequency = words.count(word)
            length = len(words) / average if average else 0.0
            score += idf * frequency / (frequency + k1 * (1 - b + b * length)) if frequency else 0.0
        scores.append(score)
    return scores


@settings(deadline=None, max_examples=30)
@given(documents, st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=4), st.integers(1, 10))
def test_scores_and_order_are_the_formula(corpus: list[list[str]], query: list[str], k: int) -> None:
    index = Bm25.build((" ".join(words) for words in corpus), k1=1.1, b=0.5, stopwords=None, stemmer=None)
    hits = index.search([" ".join(query)], k)
    expected = np.float32(lucene(corpus, query, 1.1, 0.5))
    found = [row for row in hits.positions[0].tolist() if row >= 0]
    assert hits.positions.shape == (1, k)
    assert len(found) == min(k, int((expected > 0).sum()))
    assert hits.scores[0, : len(found)] == pytest.approx(expected[found], rel=1e-5)
    assert hits.scores[0, : len(found)] == pytest.approx(-np.sort(-expected)[: len(found)], rel=1e-5)
    assert all(a > b or p < q for a, b, p, q in zip(hits.scores[0], hits.scores[0][1:], found, found[1:], strict=False))


def test_equal_documents_rank_by_position_also_at_the_cut() -> None:
    index = Bm25.build(["fig fig", *["apple tree"] * 30, "apple apple"])
    hits = index.search(["apple"], 4)
    assert hits.positions.tolist() == [[31, 1, 2, 3]]
    assert hits.scores[0, 1] == hits.scores[0, 3]


def test_documents_without_a_word_of_the_query_are_not_returned() -> None:
    index = Bm25.build(["apple", "pear", ""], ["a", "p", "e"])
    hits = index.search(["apple", "zebra", "", "the of", "APPLES pear"], 9)
    assert hits.ids == [["a"], [], [], [], ["a", "p"]]
    assert np.isneginf(hits.scores[1]).all()


@pytest.mark.parametrize("corpus", [[], [""], ["the of and", "!"]])
def test_a_corpus_without_words_returns_nothing(corpus: list[str]) -> None:
    index = Bm25.build(corpus)
    assert len(index) == len(corpus)
    assert index.search(["apple", "the"], 2).ids == [[], []]


def test_a_corpus_of_one_document_and_a_large_k_work() -> None:
    index = Bm25.build(["a ripe apple"], ["only"])
    assert index.search(["apples"], 100).ids == [["only"]]
    assert index.search([], 5).positions.shape == (0, 5)


def test_words_are_stemmed_and_stop_words_dropped_unless_told_otherwise() -> None:
    texts = ["running dogs", "the one"]
    assert Bm25.build(texts).search(["dog run the"], 2).ids == [["0"]]
    assert Bm25.build(texts, stemmer=None).search(["dog run"], 2).ids == [[]]
    assert Bm25.build(texts, stopwords=None).search(["the"], 2).ids == [["1"]]
    assert Bm25.build(texts, stopwords=["dogs"], stemmer=None).search(["dogs", "the"], 2).ids == [[], ["1"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one string"}, "texts is one string"),
        ({"texts": ["a"], "ids": ["a", "b"]}, "2 ids for 1"),
        ({"texts": ["apple"], "method": "tfidf"}, "unknown BM25 method 'tfidf'"),
        ({"texts": ["apple"], "stopwords": "klingon"}, "stop words 'klingon'"),
        ({"texts": ["apple"], "stemmer": "klingon"}, "no stemmer for 'klingon'"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bm25.build(**arguments)  # type: ignore[arg-type]


def test_wrong_searches_are_refused() -> None:
    index = Bm25.build(["apple"])
    with pytest.raises(ConfigError, match="k is 0"):
        index.search(["apple"], 0)
    with pytest.raises(ConfigError, match="queries is one string"):
        index.search("apple", 1)


@pytest.mark.parametrize("module", ["bm25s", "Stemmer"])
def test_without_its_packages_the_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ance_fast\[bm25\]'"):
        Bm25.build(["apple"])


def test_results_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from ance_fast.index import Bm25; texts = [f'w{i % 7} v{i % 5} u{i % 3} common' for i in range(60)];"
        "hits = Bm25.build(texts).search(['w1 v2 u1 common', 'common u2 w3'], 20);"
        "print(hits.positions.tolist(), hits.scores.tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scifact", {"nDCG@10": 0.6762, "RR@10": 0.6413, "R@100": 0.9127}),
        ("wikivital", {"nDCG@10": 0.7571, "RR@10": 0.7141, "R@100": 0.9559}),
    ],
)
def test_known_figures_of_real_collections_are_reproduced(
    name: str, expected: dict[str, float], shared_data: Callable[[str], Path]
) -> None:
    folder = shared_data(name)

    def rows(file: str) -> list[dict[str, str]]:
        with gzip.open(folder / file, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    corpus = rows("corpus.jsonl.gz")
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    queries = {row["_id"]: row["text"] for row in rows("queries.jsonl.gz") if row["_id"] in qrels}
    index = Bm25.build((f"{row['title']} {row['text']}" for row in corpus), [row["_id"] for row in corpus])
    run = index.search(list(queries.values()), 100).to_run(list(queries))
    assert dict(evaluate(run, qrels)) == pytest.approx(expected, abs=5e-5)
