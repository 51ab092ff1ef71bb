"""Runs measured by the answers that their passages hold."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ance_fast.data import ChunkRules, Document, TokenStore
from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation import evaluate_answers, has_answer
from ance_fast.evaluation.open_qa import read_answers

WORDS = st.sampled_from(["paris", "PARIS", "new york", "york", ".", "c++", "le", "é"])
TEXTS = st.lists(WORDS, max_size=5).map(" ".join)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(TEXTS, min_size=1, max_size=9),
    st.lists(st.lists(WORDS, max_size=2), min_size=1, max_size=4),
    st.data(),
)
def test_every_measure_is_its_definition(texts: list[str], answers: list[list[str]], data: st.DataObject) -> None:
    passages = {f"p{number}": text for number, text in enumerate(texts)}
    depth = st.lists(st.sampled_from([*passages, "gone"]), unique=True, max_size=6)
    run = {
        f"q{number}": {passage: -float(rank) for rank, passage in enumerate(data.draw(depth))}
        for number in range(len(answers))
        if number == 0 or data.draw(st.booleans())
    }
    run["q0"]["p0"] = 1.0
    given = {f"q{number}": some for number, some in enumerate(answers)}
    names = ["top-1", "top-3", "MRR@2", "MRR@100", "P@3", "SEED-MRR@2", "SEED-P@2"]
    result = evaluate_answers(run, given, (Document(name, text, "paris") for name, text in passages.items()), names)
    for query, some in given.items():
        order = sorted(run.get(query, {}), key=lambda name, query=query: run[query][name], reverse=True)
        hits = [name in passages and has_answer(some, passages[name]) for name in order]
        first = hits.index(True) + 1 if True in hits else math.inf
        beyond = sum(hits[:2]) + (True in hits[2:])
        expected = [
            float(first <= 1),
            float(first <= 3),
            (first <= 2) / first,
            1 / first,
            sum(hits[:3]) / 3,
            1 / first,
            beyond / 2,
        ]
        assert [result.per_query[name][query] for name in names] == pytest.approx(expected, abs=1e-12)
    for name in names:
        assert result[name] == pytest.approx(sum(result.per_query[name].values()) / len(given), abs=1e-12)
    assert result.missing == tuple(query for query in given if query not in run)


def test_files_as_dpr_has_them_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "psgs_w100.tsv").write_text(
        'id\ttext\ttitle\n1\t"The ""City"" of Paris"\tParis\n2\tLyon is a city.\tParis\n3\tnever retrieved\tx\n'
    )
    (tmp_path / "nq-test.qa.csv").write_text(
        "where is it?\t['Paris', \"l'Est\"]\nwhat else\t['lyon']\nwho\t['rhône']\n"
    )
    (tmp_path / "run.trec").write_text("0 Q0 2 1 9 t\n0 Q0 1 2 8 t\n1 Q0 2 1 9 t\n2 Q0 2 1 1 t\n")
    result = evaluate_answers(
        tmp_path / "run.trec", tmp_path / "nq-test.qa.csv", tmp_path / "psgs_w100.tsv", ["top-1", "top-20", "P@20"]
    )
    assert dict(result) == pytest.approx({"top-1": 1 / 3, "top-20": 2 / 3, "P@20": 2 / 60})
    by_folder = evaluate_answers(
        tmp_path / "run.trec", tmp_path / "nq-test.qa.csv", f"dpr:{tmp_path}", ["top-1"], threads=1
    )
    assert by_folder["top-1"] == result["top-1"]
    part = tmp_path / "psgs_w100_1.tsv"  # cut out of the middle: without the header
    part.write_text((tmp_path / "psgs_w100.tsv").read_text().partition("\n")[2])
    assert evaluate_answers(tmp_path / "run.trec", tmp_path / "nq-test.qa.csv", part, ["top-1"])["top-1"] == 1 / 3


@pytest.mark.parametrize("chunks", [None, ChunkRules(4, 3, True, False)])
def test_a_token_store_gives_the_texts_of_whole_documents(
    minilm: Path, tmp_path: Path, chunks: ChunkRules | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    texts = [("a", "one two three four five Paris"), ("b", "Lyon"), ("c", "one")]
    TokenStore.build(texts, tokenizer, tmp_path / "t", max_length=4, chunks=chunks)
    run = {"q": {"c": 3.0, "gone": 2.0, "a": 1.0, "b": 0.0}}
    for store in (TokenStore.open(tmp_path / "t"), str(tmp_path / "t")):
        assert evaluate_answers(run, {"q": ["five paris"]}, store, ["MRR@10"])["MRR@10"] == 1 / 3
        assert evaluate_answers(run, {"q": ["lyon"]}, store, ["MRR@10"])["MRR@10"] == 1 / 4


def test_answers_by_query_id_and_by_number_are_told_apart(tmp_path: Path) -> None:
    forms = {
        "own.jsonl": ('{"query": "7", "answers": ["a"]}\n{"query": "8", "answers": []}\n', {"7": ["a"], "8": []}),
        "dpr.json": (
            '[{"question": "who", "answers": ["a"]}, {"question": "x", "answers": ["b"]}]',
            {"0": ["a"], "1": ["b"]},
        ),
        "kilt.jsonl": ('{"id": "k", "input": "who", "output": [{"answer": "a"}]}\n', {"k": ["a"]}),
        "trivia.qa.csv": ("who\t['a']\n", {"0": ["a"]}),
    }
    for name, (text, expected) in forms.items():
        (tmp_path / name).write_text(text)
        assert read_answers(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", ":1: no questions"),
        ("a.jsonl", '{"query": "7", "answers": "a"}\n', ':1: expected {"query": id, "answers": [strings]}'),
        ("a.jsonl", '{"query": "7", "answers": [1]}\n', ':1: expected {"query": id, "answers": [strings]}'),
        ("a.jsonl", '{"query": "7", "answers": []}\n{"query": "7", "answers": []}\n', ":2: query '7' again, first at"),
        ("a.qa.csv", "who\t__import__('os').system('x')\n", ":1: the answers"),
        ("a.qa.csv", "who\n", ":1: expected `question <tab> ['answer', ...]`"),
    ],
)
def test_answers_in_another_form_are_refused_with_their_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / name}{message}")):
        read_answers(tmp_path / name)


def test_patterns_and_kilt_are_matched_pair_by_pair() -> None:
    run, passages = {"q": {"a": 2.0, "b": 1.0}}, {"a": "in 1918", "b": "The U.S. of it"}
    assert evaluate_answers(run, {"q": [r"\d{3}$"]}, passages, ["MRR@5"], match="regex")["MRR@5"] == 1.0
    assert evaluate_answers(run, {"q": ["a us"]}, passages, ["MRR@5"], match="kilt")["MRR@5"] == 0.5
    assert evaluate_answers(run, {"q": [r"\d{3}$"]}, passages, ["MRR@5"])["MRR@5"] == 0.0


def test_what_is_missing_on_either_side_is_one_counted_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    run = {"q": {"a": 1.0, "gone": 2.0}, "unknown": {"a": 1.0}, "dot": {"a": 1.0}}
    with caplog.at_level(logging.WARNING, logger="ance_fast"):
        result = evaluate_answers(run, {"q": ["x"], "other": [], "dot": ["\u200b"]}, {"a": "x"}, ["top-2"])
    assert result.per_query["top-2"] == {"q": 1.0, "other": 0.0, "dot": 1.0}
    assert [record.message for record in caplog.records] == [
        "1 questions are not in the run and count 0 (first: 'other')",
        "1 questions of the run have no answers given and are left out (first: 'unknown')",
        "1 questions have an empty list of answers and count 0 (first: 'other')",
        "1 questions have an answer without a word, which is in every text (first: 'dot')",
        "1 passages of the run have no text given and hold nothing (first: 'gone')",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ance_fast"):
        result = evaluate_answers({"q": {"a": 1.0}}, {"q": ["The"]}, {"a": "x"}, ["top-2"], match="kilt")
    assert result["top-2"] == 1.0
    assert "1 questions have an answer without a word, which is in every text (first: 'q')" in caplog.messages


def test_what_cannot_be_measured_is_refused() -> None:
    run, answers = {"q": {"a": 1.0}}, {"q": ["x"]}
    with pytest.raises(DataError, match="first 'q'.*first 'r'.*no question in common"):
        evaluate_answers(run, {"r": ["x"]}, {"a": "x"})
    with pytest.raises(DataError, match="none of the run's 1 passages, such as 'a', is among"):
        evaluate_answers(run, answers, {"b": "x"})
    with pytest.raises(DataError, match="query 'q', document 'a': the score is NaN"):
        evaluate_answers({"q": {"a": math.nan}}, answers, {"a": "x"})
    for measure in ("top-0", "nDCG@10", "P@", ""):
        with pytest.raises(ConfigError, match="unknown measure"):
            evaluate_answers(run, answers, {"a": "x"}, [measure])
    with pytest.raises(ConfigError, match="no measure asked for"):
        evaluate_answers(run, answers, {"a": "x"}, [])
    with pytest.raises(ConfigError, match="match='exact': choose one of string"):
        evaluate_answers(run, answers, {"a": "x"}, match="exact")


def test_json_lines_may_begin_with_a_question_that_has_an_id(tmp_path: Path) -> None:
    line = {"id": "q7", "query": "what is it", "answers": ["a"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    assert read_answers(tmp_path / "a.jsonl") == {"q7": ["a"]}
