"""Answers that come with the questions of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ance_fast import Encoder, load_dataset
from ance_fast.errors import DataError
from ance_fast.training.dataset_answers import chosen_answers
from ance_fast.training.examples import prepare


def context(passage: int) -> dict[str, object]:
    return {"title": "t", "text": "x", "passage_id": str(passage)}


def test_a_dpr_folder_brings_its_answers_for_both_sets_of_questions(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "psgs_w100.tsv").write_text("id\ttext\ttitle\n1\tThe cat sat.\tDog\n2\tA dog ran.\tCat\n3\tx\ty\n")
    for name, answers in (("nq", ["cat"]), ("trivia", ["dog", " "])):
        questions = [{"question": "q", "answers": answers, "positive_ctxs": [context(3)]}]
        (tmp_path / f"{name}-train.json").write_text(json.dumps(questions))
    encoder = Encoder.load(str(tiny_bert), device="cpu")
    examples = prepare(load_dataset(tmp_path), encoder, tmp_path / "store", max_document_length=16)
    assert list(examples.queries.ids) == ["nq-0", "trivia-0"]
    match = chosen_answers("dataset", examples)
    assert match is not None
    found = match(np.repeat([0, 1], 3), np.tile([0, 1, 2], 2))
    assert found[[0, 2, 4, 5]].tolist() == [True, False, True, False]
    assert chosen_answers(None, examples) is None
    (tmp_path / "answers.jsonl").write_text('{"query": "trivia-0", "answers": ["cat"]}\n')
    from_file = chosen_answers(str(tmp_path / "answers.jsonl"), examples)
    assert from_file is not None
    assert from_file(np.array([0, 1]), np.array([0, 0])).tolist() == [False, True]


def test_a_data_set_without_answers_is_refused(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(str(tiny_bert), device="cpu")
    examples = prepare(load_dataset(wiki, split="dev"), encoder, tmp_path / "store", max_document_length=16)
    with pytest.raises(DataError, match="the data set brings no answers; name a file"):
        chosen_answers("dataset", examples)
