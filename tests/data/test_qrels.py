from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.qrels import Qrels, drop_unknown, read_qrels
from ance_fast.errors import DataError


def qrels_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "qrels.tsv"
    file.write_text(text)
    return file


EXPECTED = {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 2}}


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n",
        "q1\t0\td1\t1\nq1\t0\td2\t0\n\nq2\t0\td1\t2",
        "q1  Q0   d1 1\r\nq1 Q0 d2\t0\r\nq2 0 d1 2\r\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n",
        "q1\td1\t1\nq1\td2\t0\nq2\td1\t2\n",
    ],
    ids=["trec", "trec with tabs", "trec with any space", "beir", "beir without header"],
)
def test_every_form_of_qrels_reads_the_same(tmp_path: Path, text: str) -> None:
    assert read_qrels(qrels_file(tmp_path, text)) == EXPECTED


def test_beir_ids_may_hold_spaces_and_grades_may_be_negative(tmp_path: Path) -> None:
    assert read_qrels(qrels_file(tmp_path, "a query\ta document\t-1\n")) == {"a query": {"a document": -1}}


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("q 0 d 1\nq 0 d2\n", 2, "expected 4 columns as in the first line, got 3"),
        ("a b\n", 1, "got 2 columns"),
        ("q 0 d 1.5\n", 1, "grade '1.5' is not an integer"),
        ("q\td\tscore\nq\td\tx1\n", 2, "grade 'x1' is not an integer"),
        ("query-id\tcorpus-id\tscore\n\td\t1\n", 2, "empty query id"),
        ("q\t\t1\n", 1, "empty document id"),
    ],
)
def test_malformed_qrels_are_refused_with_file_and_line(tmp_path: Path, text: str, line: int, expected: str) -> None:
    file = qrels_file(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_qrels(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert expected in str(caught.value)


def test_a_repeated_judgement_counts_once_and_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = qrels_file(tmp_path, "q 0 d 1\nq 0 e 1\nq 0 d 1\nq 0 d 1\n")
    assert read_qrels(file) == {"q": {"d": 1, "e": 1}}
    assert [record.getMessage() for record in caplog.records] == [
        f"2 judgements repeat an earlier line and count once (first: {file}:3)"
    ]


def test_contradictory_judgements_name_both_lines(tmp_path: Path) -> None:
    file = qrels_file(tmp_path, "q 0 d 1\nq 0 e 1\nq 0 d 0\n")
    with pytest.raises(DataError, match=rf"{file}:3: grade 0 .* but grade 1 at {file}:1"):
        read_qrels(file)


def test_training_drops_what_is_unknown_and_says_where_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = qrels_file(
        tmp_path,
        "good 0 here 1\ngood 0 gone 1\nlost 0 here 1\nlost 0 gone2 1\nempty 0 here 0\nempty 0 gone 1\nother 0 here 1\n",
    )
    qrels = read_qrels(file)
    usable = drop_unknown(qrels, {"good": "x", "empty": "y", "other": "z"}, ["here", "more"])
    assert usable == {"good": {"here": 1}, "other": {"here": 1}}
    assert [record.getMessage() for record in caplog.records] == [
        f"3 judgements name a document that is not in the corpus (first: {file}:2)",
        f"1 judged queries have no text (first: {file}:3)",
        f"1 queries have no relevant document in the corpus (first: {file}:5)",
    ]
    assert qrels["good"] == {"here": 1, "gone": 1}, "evaluation keeps every judgement"
    assert usable.path == file


def test_a_table_of_rows_serves_as_document_ids() -> None:
    class Table:
        def positions(self, ids: list[str]) -> np.ndarray:
            return np.array([0 if identifier == "here" else -1 for identifier in ids], dtype=np.int64)

    qrels = Qrels({"q": {"here": 1, "gone": 1}})
    assert drop_unknown(qrels, {"q"}, Table()) == {"q": {"here": 1}}


def test_judgements_of_another_corpus_are_refused(tmp_path: Path) -> None:
    file = qrels_file(tmp_path, "q 0 d1 1\nq 0 d2 1\n")
    with pytest.raises(DataError, match=r"none of the 2 judged ids is in the corpus: wrong corpus or id format\?"):
        drop_unknown(read_qrels(file), {"q"}, {"1", "2"})


def test_judgements_without_anything_relevant_are_refused(tmp_path: Path) -> None:
    file = qrels_file(tmp_path, "q 0 d 0\n")
    with pytest.raises(DataError, match="no query has both a text and a relevant document"):
        drop_unknown(read_qrels(file), {"q"}, {"d"})
    with pytest.raises(DataError, match="no query has both"):
        drop_unknown(Qrels(), {"q"}, {"d"})


identifiers = st.text("abc1-", min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(identifiers, st.dictionaries(identifiers, st.integers(-1, 3), min_size=1), min_size=1),
    st.sets(identifiers),
    st.sets(identifiers),
)
def test_what_training_gets_is_known_and_has_a_positive(
    judged: dict[str, dict[str, int]], queries: set[str], documents: set[str]
) -> None:
    expected = {
        query: kept
        for query, grades in judged.items()
        if query in queries
        and any((kept := {document: grade for document, grade in grades.items() if document in documents}).values())
        and max(kept.values()) > 0
    }
    try:
        assert drop_unknown(Qrels(judged), queries, documents) == expected
    except DataError:
        assert not expected
