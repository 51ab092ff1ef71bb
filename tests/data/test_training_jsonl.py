from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.records import Document, Query
from ance_fast.data.training_jsonl import TrainingRow, read_jsonl, write_jsonl
from ance_fast.errors import DataError


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_documents_with_ids_keep_them_and_scores_belong_to_their_documents(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {
            "id": "q",
            "query": "capital of france",
            "positives": [{"id": "p", "title": "Paris", "text": "It is"}],
            "negatives": [{"id": 3, "text": "Lyon"}, {"id": "n", "text": "Nice"}],
            "positive_scores": [9],
            "negative_scores": [2.5, -1],
        },
    )
    data = read_jsonl(file)
    assert data.name == "train"
    assert data.split == "train"
    assert data.queries == {"q": "capital of france"}
    assert data.qrels == {"q": {"p": 1}}
    assert data.negatives == {"q": ["3", "n"]}
    assert data.scores == {"q": {"p": 9.0, "3": 2.5, "n": -1.0}}
    assert list(data.corpus) == [Document("p", "It is", "Paris"), Document("3", "Lyon"), Document("n", "Nice")]


def test_equal_texts_are_one_document_and_others_are_not(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"query": "a", "positives": ["same", "other"]},
        {"query": "b", "positives": [{"text": "same"}], "negatives": ["other", "new", "new"]},
        {"query": "c", "positives": [{"text": "same", "title": "with a title"}]},
    )
    data = read_jsonl(file)
    assert list(data.queries) == ["1", "2", "3"]
    documents = list(data.corpus)
    assert [document.full_text for document in documents] == ["same", "other", "new", "with a title same"]
    ids = [document.id for document in documents]
    assert len(set(ids)) == 4 == len(data.corpus)
    assert data.qrels == {"1": {ids[0]: 1, ids[1]: 1}, "2": {ids[0]: 1}, "3": {ids[3]: 1}}
    assert data.negatives == {"2": [ids[1], ids[2]]}
    assert data.scores is None


def test_a_title_moved_into_the_text_is_another_document(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"query": "a", "positives": [{"title": "ab", "text": "c"}, {"title": "a", "text": "bc"}, "abc"]},
    )
    assert len(read_jsonl(file).corpus) == 3


def test_a_positive_listed_as_a_negative_too_stays_positive(tmp_path: Path) -> None:
    data = read_jsonl(
        write(
            tmp_path,
            {
                "query": "a",
                "positives": ["x"],
                "negatives": ["x"],
                "positive_scores": [1.0],
                "negative_scores": [0.0],
            },
        )
    )
    assert data.negatives is None
    assert [list(scores.values()) for scores in (data.scores or {}).values()] == [[1.0]]


def test_a_zipped_file_reads_the_same(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"query": "a", "positives": ["x"]}\n'))
    data = read_jsonl(file)
    assert data.name == "set"
    assert [document.text for document in data.corpus] == ["x"]


GOOD: dict[str, Any] = {"query": "a", "positives": ["x"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"positives": ["x"]}, "no `query`"),
        ({"query": 1, "positives": ["x"]}, "`query` must be a string"),
        ({"query": "a"}, "positives is empty"),
        ({"query": "a", "positives": []}, "positives is empty"),
        ({"query": "a", "positives": "x"}, "`positives` must be a list, not str"),
        ({"query": "a", "positives": [1]}, "positives[0] must be a text or an object with `text`, not int"),
        ({**GOOD, "negatives": ["x", {"id": "y"}]}, "negatives[1]: `text` and `title` must be strings"),
        ({"query": "a", "positives": [{"id": [], "text": "x"}]}, "positives[0]: `id` must be a string"),
        ({**GOOD, "id": ""}, "`id` must be a string that is not empty"),
        ({**GOOD, "positive_scores": [1, 2]}, "must list one number for each of the 1 positives, got 2"),
        ({**GOOD, "negative_scores": [1]}, "must list one number for each of the 0 negatives, got 1"),
        ({**GOOD, "positive_scores": 3}, "must list one number for each of the 1 positives, got int"),
        ({**GOOD, "positive_scores": ["1"]}, "holds '1', which is not a finite number"),
        ({**GOOD, "positive_scores": [float("nan")]}, "holds nan, which is not a finite number"),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    file = write(tmp_path, GOOD, row)
    with pytest.raises(DataError) as caught:
        read_jsonl(file)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert expected in str(caught.value)


def test_an_id_with_two_texts_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"query": "a", "positives": [{"id": "d", "text": "x"}]},
        GOOD,
        {"query": "b", "positives": [{"id": "d", "text": "y"}]},
    )
    with pytest.raises(DataError, match=rf"{file}:3: document id 'd' has another text than at {file}:1"):
        list(read_jsonl(file).corpus)


def test_a_duplicate_query_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = write(tmp_path, {**GOOD, "id": "q"}, {**GOOD, "id": "q", "positives": ["y"]})
    with pytest.raises(DataError, match=rf"{file}:2: query id 'q' again, first at {file}:1"):
        read_jsonl(file)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file holds no queries"):
        read_jsonl(write(tmp_path))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
documents = st.dictionaries(st.text("abcé ", min_size=1, max_size=3), st.tuples(texts, texts), min_size=2, max_size=6)


@settings(deadline=None, max_examples=40)
@given(documents, st.lists(texts, min_size=1, max_size=4), st.randoms(), st.sampled_from(["t.jsonl", "t.jsonl.gz"]))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    found: dict[str, tuple[str, str]],
    queries: list[str],
    draw: random.Random,
    name: str,
) -> None:
    corpus = [Document(identifier, text, title) for identifier, (text, title) in found.items()]
    rows = []
    for number, query in enumerate(queries):
        own = draw.sample(corpus, draw.randint(1, len(corpus)))
        cut = draw.randint(1, len(own))
        scores = [draw.random() for _ in own]
        rows.append(TrainingRow(Query(f"q{number}", query), own[:cut], own[cut:], scores[:cut], scores[cut:]))
    file = tmp_path_factory.mktemp("jsonl") / name
    write_jsonl(file, rows)
    dataset = read_jsonl(file)
    assert dataset.queries == {row.query.id: row.query.text for row in rows}
    used = dict.fromkeys(document for row in rows for document in (*row.positives, *row.negatives))
    assert list(dataset.corpus) == list(used)
    for row in rows:
        assert dataset.qrels[row.query.id] == {document.id: 1 for document in row.positives}
        assert (dataset.negatives or {}).get(row.query.id, []) == [document.id for document in row.negatives]
        assert dataset.scores is not None
        scored = zip([*row.positives, *row.negatives], [*row.positive_scores, *row.negative_scores], strict=True)  # type: ignore[misc]
        assert dataset.scores[row.query.id] == {document.id: score for document, score in scored}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (TrainingRow(Query("q", "x"), [], []), "query 'q' has no positives"),
        (TrainingRow(Query("q", "x"), [Document("d", "t")], [], [float("inf")]), "not a finite number"),
        (TrainingRow(Query("q", "x"), [Document("d", "t")], [], None, [1.0]), "each of the 0 negatives"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, row: TrainingRow, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        write_jsonl(tmp_path / "t.jsonl", [TrainingRow(Query("a", "b"), [Document("d", "t")], []), row])
    assert not list(tmp_path.iterdir())
