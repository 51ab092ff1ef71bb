from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.ance_files import (
    AnnReport,
    AnnTrainingData,
    newest_ann_generation,
    read_ann_report,
    read_ann_training_data,
    write_ann_generation,
    write_ann_report,
    write_ann_training_data,
)
from ance_fast.errors import ArtifactError, DataError


def as_data(lines: list[tuple[int, int, list[int]]]) -> AnnTrainingData:
    return AnnTrainingData(
        np.array([query for query, _, _ in lines], dtype=np.int64),
        np.array([positive for _, positive, _ in lines], dtype=np.int64),
        np.cumsum([0, *(len(negatives) for _, _, negatives in lines)]).astype(np.int64),
        np.array([one for _, _, negatives in lines for one in negatives], dtype=np.int64),
    )


def as_lines(data: AnnTrainingData) -> list[tuple[int, int, list[int]]]:
    return [(int(data.queries[i]), int(data.positives[i]), data.of(i).tolist()) for i in range(len(data))]


def test_lines_as_microsoft_writes_them_are_read(tmp_path: Path) -> None:
    file = tmp_path / "ann_training_data_0"
    file.write_bytes(b"7\t103\t5,88,12\n0\t9\t3\n41\t2\t\n")
    data = read_ann_training_data(file)
    assert as_lines(data) == [(7, 103, [5, 88, 12]), (0, 9, [3]), (41, 2, [])]
    for part in (data.queries, data.positives, data.offsets, data.negatives):
        assert part.dtype == np.int64


def test_lines_are_written_as_microsoft_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ann_training_data_3"
    write_ann_training_data(file, as_data([(7, 103, [5, 88, 12]), (0, 9, [3])]))
    assert file.read_bytes() == b"7\t103\t5,88,12\n0\t9\t3\n"
    # What its trainer does with a line.
    fields = file.read_text().splitlines()[0].split("\t")
    assert (int(fields[0]), int(fields[1]), [int(one) for one in fields[2].split(",")]) == (7, 103, [5, 88, 12])


offset = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(offset, offset, st.lists(offset, min_size=1, max_size=6)), max_size=8))
def test_training_data_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, int, list[int]]]
) -> None:
    file = tmp_path_factory.mktemp("ann") / "ann_training_data_1"
    write_ann_training_data(file, as_data(lines))
    assert as_lines(read_ann_training_data(file)) == lines


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("1\t2\n", 1, "2 columns"),
        ("1\t2\t3\t4\n", 1, "4 columns"),
        ("1 2 3\n", 1, "1 columns"),
        ("1\t2\t3\nq1\t2\t3\n", 2, "query 'q1' is not an offset"),
        ("1\t-2\t3\n", 1, "positive '-2' is not an offset"),
        ("1\t2\t3,,4\n", 1, "negative '' is not an offset"),
        ("1\t2\t3, 4\n", 1, "negative ' 4' is not an offset"),
        ("1\t2\t3,1_0\n", 1, "negative '1_0' is not an offset"),
        ("1\t2\t٣\n", 1, "negative '٣' is not an offset"),
        ("1\t2\t3\n4\t5\t9223372036854775808\n", 2, "does not fit 64 bits"),
        ("1\t2\t3\n4\t5\t" + "9" * 5000 + "\n", 2, "does not fit 64 bits"),
        ("1\t2\t3\n4\t5\t6,7", 2, "cut short"),
    ],
)
def test_malformed_training_data_is_refused_with_file_and_line(
    tmp_path: Path, text: str, line: int, expected: str
) -> None:
    file = tmp_path / "ann_training_data_0"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_ann_training_data(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [([(1, 2, [])], "query 1 has no negatives"), ([(1, -1, [2])], "positives holds -1"), ([(1, 2, [-1])], "negatives")],
)
def test_what_microsoft_could_not_read_is_refused_and_the_earlier_file_stays(
    tmp_path: Path, lines: list[tuple[int, int, list[int]]], expected: str
) -> None:
    file = tmp_path / "ann_training_data_0"
    write_ann_training_data(file, as_data([(0, 1, [2])]))
    with pytest.raises(DataError, match=expected):
        write_ann_training_data(file, as_data(lines))
    assert file.read_bytes() == b"0\t1\t2\n"
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_reports_of_both_of_its_miners_are_read(tmp_path: Path) -> None:
    file = tmp_path / "ann_ndcg_0"
    file.write_text('{"ndcg": 0.5874, "checkpoint": "/out/checkpoint-20000/"}')
    assert read_ann_report(file) == AnnReport({"ndcg": 0.5874}, "/out/checkpoint-20000/")
    file.write_text('{"top20": 0.8, "top100": 1, "top20_trivia": 0.79, "top100_trivia": 0.85, "checkpoint": "c"}')
    assert read_ann_report(file).metrics == {"top20": 0.8, "top100": 1.0, "top20_trivia": 0.79, "top100_trivia": 0.85}


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name != "checkpoint"),
        st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_a_report_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float], checkpoint: str
) -> None:
    file = tmp_path_factory.mktemp("ann") / "ann_ndcg_1"
    write_ann_report(file, AnnReport(metrics, checkpoint))
    assert read_ann_report(file) == AnnReport(metrics, checkpoint)
    assert json.loads(file.read_text())["checkpoint"] == checkpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"ndcg": 0.5,\n "checkpoint": ', ":2: not JSON"),
        ('{"ndcg": 0.5}', ':1: expected an object with the string "checkpoint"'),
        ("[]", ":1: expected an object"),
        ('{"ndcg": "high", "checkpoint": "c"}', ":1: 'ndcg' is 'high'"),
        ('{"ndcg": true, "checkpoint": "c"}', ":1: 'ndcg' is True"),
    ],
)
def test_a_malformed_report_is_refused_with_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "ann_ndcg_0"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_ann_report(file)
    assert str(caught.value).startswith(f"{file}{expected}")


def test_a_report_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only finite numbers"):
        write_ann_report(tmp_path / "ann_ndcg_0", AnnReport({"ndcg": float("nan")}, "c"))
    assert not list(tmp_path.iterdir())


def test_the_newest_generation_is_the_highest_number_that_was_announced(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no ann_ndcg_N"):
        newest_ann_generation(tmp_path)
    for generation in (2, 10):
        write_ann_generation(tmp_path, generation, as_data([(generation, 1, [0])]), AnnReport({"ndcg": 0.1}, "c"))
    write_ann_training_data(tmp_path / "ann_training_data_11", as_data([(11, 1, [0])]))  # not announced yet
    (tmp_path / "ann_ndcg_12.part").write_text("")
    number, data, report = newest_ann_generation(tmp_path)
    assert (number, as_lines(data), report) == (10, [(10, 1, [0])], AnnReport({"ndcg": 0.1}, "c"))


def test_a_generation_is_announced_only_when_its_data_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_ann_generation(tmp_path, 0, as_data([(0, 1, [])]), AnnReport({"ndcg": 0.1}, "c"))
    assert not list(tmp_path.iterdir())
