"""Passages that hold an answer."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import examples_of
from transformers import AutoTokenizer

from ance_fast.data import Document, TokenStore
from ance_fast.errors import DataError
from ance_fast.training.answers import AnswerMatch, answer_match_of
from ance_fast.training.examples import Examples


def store(*texts: str) -> Any:
    """Stands for a token store where only texts matter."""
    return SimpleNamespace(chunked=None, texts=lambda rows: [texts[row] for row in rows])


def test_a_title_is_not_looked_at_and_only_asked_queries_read_passages(tiny_bert: Path, tmp_path: Path) -> None:
    documents = [Document(f"d{row}", "in Zu\u0308rich", "Bern") for row in range(10)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    passages = TokenStore.build(documents, tokenizer, tmp_path / "t", max_length=4, shard_rows=3)
    read: list[list[int]] = []

    def texts(rows: np.ndarray) -> list[str]:
        read.append(rows.tolist())
        return passages.texts(rows)

    match = AnswerMatch(SimpleNamespace(texts=texts), {2: ["Bern"], 5: ["none", "ZÜRICH"]})  # type: ignore[arg-type]
    found = match(np.array([5, 2, 3, 5]), np.array([9, 9, 7, 4]))
    assert found.tolist() == [True, False, False, True]
    assert read == [[4, 9]]


def test_it_reaches_a_worker_process_by_its_answers() -> None:
    match = AnswerMatch(None, {0: ["a b"], 3: ["É"]})  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(match))
    assert again.digest() == match.digest() == AnswerMatch(None, {3: ["e\u0301"], 0: ["A  b"]}).digest()  # type: ignore[arg-type]
    assert again.digest() != AnswerMatch(None, {0: ["ab"], 3: ["É"]}).digest()  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_pairs_are_answered_in_their_order_whatever_it_is(data: st.DataObject) -> None:
    words = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
    texts = data.draw(st.lists(words, min_size=1, max_size=5))
    answers = data.draw(st.dictionaries(st.integers(0, 3), st.lists(words, min_size=1, max_size=2), max_size=3))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, len(texts) - 1)), max_size=12))
    match = AnswerMatch(
        store(*map(" ".join, texts)), {q: [" ".join(one) for one in some] for q, some in answers.items()}
    )
    queries, rows = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    expected = [
        any(text[i : i + len(one)] == one for one in answers.get(query, []) for i in range(len(text)))
        for query, text in ((query, texts[row]) for query, row in pairs)
    ]
    assert match(queries, rows).tolist() == expected


def named() -> Examples:
    return replace(
        examples_of([[0], [1]], 3), queries=SimpleNamespace(ids=["q0", "q1"]), passages=store("a b", "c", "d")
    )


def test_a_file_gives_the_answers_of_training_queries(tmp_path: Path) -> None:
    lines = [
        {"query": "q1", "answers": ["B", "d"]},
        {"query": "another", "answers": ["a"]},
        {"query": "q0", "answers": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    match = answer_match_of(str(tmp_path / "a.jsonl"), named())
    assert match(np.array([1, 1, 1, 0]), np.array([0, 1, 2, 0])).tolist() == [True, False, True, False]
    assert match.digest() == AnswerMatch(store(), {1: ["b", "d"]}).digest() != AnswerMatch(store(), {1: ["b"]}).digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: no answers to a training query"),
        ('{"query": "x", "answers": ["a"]}\n', ":1: no answers to a training query"),
        ('{"query": "q0", "answers": "a"}\n', ':1: expected {"query": id, "answers": [strings]}'),
        ('{"query": "q0", "answers": ["a"]}\n{"query": "q0", "answers": ["b"]}\n', ":2: query 'q0' again, first at"),
        ('{"query": "q0", "answers": ["a", " "]}\n', ":1: the answer ' ' holds no word"),
    ],
)
def test_a_file_of_no_use_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        answer_match_of(str(path), named())
