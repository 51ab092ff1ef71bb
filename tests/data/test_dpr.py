from __future__ import annotations

import csv
import gzip
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ance_fast.data.dpr import read_dpr
from ance_fast.data.records import Document
from ance_fast.data.sources import load_corpus, load_dataset
from ance_fast.errors import ConfigError, DataError

PASSAGES = [("1", 'He said "hi"', "Aaron"), ("2", "plain", '"Quoted" title'), ("3", '"', "")]


def example(question: str, positives: list[int], hard: list[int], other: list[int], name: str = "passage_id") -> Any:
    contexts = {"positive_ctxs": positives, "hard_negative_ctxs": hard, "negative_ctxs": other}
    made = {key: [{"title": "t", "text": "x", name: str(one)} for one in ids] for key, ids in contexts.items()}
    return {"question": question, "answers": ["a"], **made}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([("id", "text", "title"), *PASSAGES])
    (tmp_path / "psgs_w100.tsv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    (tmp_path / "biencoder-nq-train.json").write_text(
        json.dumps([example("who?", [2, 1], [3, 2, 3], [1]), example("none", [], [1], []), example("b", [1], [], [3])])
    )
    (tmp_path / "nq-test.qa.csv").write_text("who was it?\t['a']\nwhere\t['b']\n")
    return tmp_path


def test_passages_are_unquoted_and_their_titles_end_in_the_separator(folder: Path) -> None:
    assert list(load_corpus(folder)) == [
        Document("1", 'He said "hi"', "Aaron [SEP]"),
        Document("2", "plain", '"Quoted" title [SEP]'),
        Document("3", '"', "[SEP]"),
    ]
    assert [document.full_text for document in load_corpus(f"dpr:{folder}?separator=[SEP][SEP]")][:1] == [
        'Aaron [SEP][SEP] He said "hi"'
    ]
    assert [document.title for document in load_corpus(f"dpr:{folder}?separator=")] == ["Aaron", '"Quoted" title', ""]


def test_a_bert_tokenizer_makes_the_pair_of_segments_of_it(folder: Path, tokenizer: Any) -> None:
    for document, (_, text, title) in zip(load_corpus(folder), PASSAGES, strict=True):
        pair = tokenizer(title, add_special_tokens=False)["input_ids"], tokenizer(text)["input_ids"][1:]
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        assert tokenizer(document.full_text)["input_ids"] == [start, *pair[0], end, *pair[1]]


def test_the_training_file_gives_judgements_and_negatives(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = load_dataset(folder, split="train")
    assert data.queries == {"0": "who", "2": "b"}
    assert data.qrels == {"0": {"2": 1}, "2": {"1": 1}}
    assert data.negatives == {"0": ["3"], "2": ["3"]}
    assert "1 questions have no positive passage" in caplog.text
    assert read_dpr(folder, positives="all").qrels == {"0": {"2": 1, "1": 1}, "2": {"1": 1}}
    assert read_dpr(folder, strip_question_mark=False).queries["0"] == "who?"
    assert "biencoder-nq-train.json:1" in data.qrels.where("2", "1")


def test_questions_alone_have_no_judgements(folder: Path) -> None:
    data = read_dpr(folder, "test")
    assert (data.queries, data.qrels, data.negatives) == ({"0": "who was it", "1": "where"}, {}, None)


def test_two_sets_are_one_with_ids_that_tell_them_apart(folder: Path) -> None:
    (folder / "trivia-train.json").write_text(json.dumps([example("t?", [3], [1], [], "psg_id")]))
    data = read_dpr(folder, "train")
    assert data.queries == {"nq-0": "who", "nq-2": "b", "trivia-0": "t"}
    assert data.qrels == {"nq-0": {"2": 1}, "nq-2": {"1": 1}, "trivia-0": {"3": 1}}
    assert load_dataset(f"dpr:{folder}?questions=trivia").qrels == {"0": {"3": 1}}


def test_ids_that_come_twice_and_splits_without_a_positive_are_refused(folder: Path) -> None:
    twice = [example("a", [1], [], []) | {"id": "x"}, example("b", [], [], []) | {"id": "x"}]
    (folder / "biencoder-nq-train.json").write_text(json.dumps(twice))
    with pytest.raises(DataError, match=r"nq-train\.json:1: question 'x' again, first at .*nq-train\.json:1"):
        read_dpr(folder)
    (folder / "biencoder-nq-train.json").write_text(json.dumps([example("a", [], [1], [])]))
    with pytest.raises(DataError, match=r"nq-train\.json: no question, or none with a positive passage"):
        read_dpr(folder)


def test_what_is_missing_or_malformed_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'dev': none of biencoder-nq-dev\.json, .* found there"):
        read_dpr(folder, "dev")
    with pytest.raises(ConfigError, match="positives must be"):
        read_dpr(folder, positives="some")
    with pytest.raises(ConfigError, match="questions must be nq or trivia"):
        load_dataset(f"dpr:{folder}?questions=squad")
    wrong = [example("a", [1], [], []), example("b", [1], [], [], "id")]
    (folder / "biencoder-nq-train.json").write_text("[\n" + ",\n".join(map(json.dumps, wrong)) + "\n]")
    with pytest.raises(DataError, match=r"train\.json:3: positive_ctxs\[0\] has no `passage_id` or `psg_id`"):
        read_dpr(folder)
    for line, expected in {
        '4\t"never closed\tTitle': "got 2 columns",
        "4\tno title": "got 2 columns",
        "\tx\ty": "empty id",
    }.items():
        (folder / "psgs_w100.tsv").write_text(f"id\ttext\ttitle\n1\tx\ty\n{line}\n")
        with pytest.raises(DataError, match=rf"psgs_w100\.tsv:3: .*{expected}"):
            list(read_dpr(folder, None).corpus)
