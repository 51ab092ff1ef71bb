from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from ance_fast.data.kilt import read_kilt
from ance_fast.data.records import Document
from ance_fast.data.sources import load_corpus, load_dataset
from ance_fast.errors import DataError


def place(page: object, first: object, last: object) -> dict[str, object]:
    return {"wikipedia_id": page, "start_paragraph_id": first, "end_paragraph_id": last}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    page = {"wikipedia_id": "307", "wikipedia_title": "Lincoln", "text": ["Lincoln\n", " \n", "He was born.\n"]}
    (tmp_path / "kilt_knowledgesource.json").write_text(json.dumps(page) + "\n")
    output = [{"answer": "a", "provenance": [place("307", 1, 2), place("307", 2, 2)]}, {"answer": "b"}]
    (tmp_path / "nq-dev-kilt.jsonl").write_text(json.dumps({"id": "q1", "input": "who", "output": output}) + "\n")
    (tmp_path / "nq-test-kilt.jsonl").write_text(json.dumps({"id": "q2", "input": "where"}) + "\n")
    return tmp_path


def test_paragraphs_are_passages_named_after_their_page(folder: Path) -> None:
    expected = [Document("307#0", "Lincoln", "Lincoln"), Document("307#2", "He was born.", "Lincoln")]
    assert list(load_corpus(folder)) == expected


def test_provenance_is_relevance(folder: Path) -> None:
    data = load_dataset(f"kilt:{folder}")
    assert data.queries == {"q1": "who"}
    assert data.qrels == {"q1": {"307#1": 1, "307#2": 1}}
    test = read_kilt(folder, "test")
    assert (test.queries, test.qrels) == ({"q2": "where"}, {})


def test_a_page_without_paragraphs_judges_nothing_and_is_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = [{"wikipedia_id": "307"}, place("307", None, None), {"wikipedia_id": "307", "start_paragraph_id": 2}]
    with open(folder / "nq-dev-kilt.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "q3", "input": "who", "output": [{"provenance": places}]}) + "\n")
    with caplog.at_level(logging.WARNING):
        assert read_kilt(folder).qrels["q3"] == {"307#2": 1}
    assert "2 provenances name a page and no paragraph" in caplog.text
    assert "nq-dev-kilt.jsonl:2)" in caplog.text


def test_of_several_tasks_one_must_be_named(folder: Path) -> None:
    (folder / "fever-dev-kilt.jsonl").write_text('{"id": "f", "input": "claim"}\n')
    with pytest.raises(DataError, match=r"several tasks with that split \(fever, nq\); name one with \?task=NAME"):
        read_kilt(folder)
    assert load_dataset(f"kilt:{folder}?task=fever").queries == {"f": "claim"}
    with pytest.raises(DataError, match="no task with that split"):
        read_kilt(folder, "train")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("nq-dev-kilt.jsonl", {"id": "q", "input": "x", "output": [{"provenance": [place("1", 3, 2)]}]}, "no range"),
        ("nq-dev-kilt.jsonl", {"id": "q", "input": "x", "output": [{"provenance": [place("1", 0, 1e9)]}]}, "no range"),
        ("nq-dev-kilt.jsonl", {"id": "q", "input": "x", "output": [{"provenance": ["1"]}]}, "must be an object"),
        ("nq-dev-kilt.jsonl", {"id": "q", "input": "x", "output": [{"provenance": 5}]}, "`provenance` must be a list"),
        ("nq-dev-kilt.jsonl", {"id": "q", "input": "x", "output": 5}, "`output` must be a list, not int"),
        ("kilt_knowledgesource.json", {"wikipedia_id": "1", "wikipedia_title": "t", "text": "x"}, "list of paragraphs"),
    ],
)
def test_malformed_records_are_refused_with_file_and_line(
    folder: Path, name: str, value: object, expected: str
) -> None:
    with open(folder / name, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
    with pytest.raises(DataError, match=rf"{name}:2: .*{expected}"):
        list(read_kilt(folder).corpus)
