from __future__ import annotations

from pathlib import Path

import pytest

from ance_fast.data.candidates import read_candidates, read_top1000
from ance_fast.data.records import Document
from ance_fast.data.sources import load_dataset
from ance_fast.errors import DataError

TOP1000 = "9\tp2\tnine\ttwo\tand a tab\n8\tp1\teight\tone\n9\tp1\tnine\tone\n"


def test_a_top1000_file_keeps_its_order(tmp_path: Path) -> None:
    file = tmp_path / "top1000.dev.tsv"
    file.write_text(TOP1000)
    assert read_candidates(file) == {"9": {"p2": -1.0, "p1": -2.0}, "8": {"p1": -1.0}}


def test_runs_are_told_from_top1000_files(tmp_path: Path) -> None:
    file = tmp_path / "msmarco-docdev-top100"
    file.write_text("2 Q0 D1 1 -5.5 IndriQueryLikelihood\n2 Q0 D2 2 -6 IndriQueryLikelihood\n")
    assert read_candidates(file) == {"2": {"D1": -5.5, "D2": -6.0}}
    file.write_text("2\tQ0\tD1\t1\t7\tmine\n")
    assert read_candidates(file) == {"2": {"D1": 7.0}}
    file.write_text("2\tD1\t1\n2\tD2\t2\n")
    assert read_candidates(file) == {"2": {"D1": -1.0, "D2": -2.0}}
    file.write_text("2\tp\tquery\twith\ttabs 1\t2\n")  # six columns, but no rank
    assert read_candidates(file) == {"2": {"p": -1.0}}


def test_a_top1000_file_is_a_data_set_of_its_distinct_passages(tmp_path: Path) -> None:
    file, qrels = tmp_path / "top1000.dev", tmp_path / "qrels.tsv"
    file.write_text(TOP1000)
    qrels.write_text("9\t0\tp1\t1\n")
    data = load_dataset(f"top1000:{file}?qrels={qrels}")
    assert list(data.corpus) == [Document("p2", "two\tand a tab"), Document("p1", "one")]
    assert data.queries == {"9": "nine", "8": "eight"}
    assert data.qrels == {"9": {"p1": 1}}
    assert read_top1000(file).qrels == {}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("9\tp2\tnine\ttwo\tand a tab\n", "top:4: document 'p2' comes twice for query '9'"),
        ("9\tp3\tnine\n", "top:4: expected 4 columns"),
        ("\tp3\tnine\tx\n", "top:4: empty query id"),
        ("9\t\tnine\tx\n", "top:4: empty document id"),
    ],
)
def test_malformed_candidates_are_refused_with_file_and_line(tmp_path: Path, extra: str, expected: str) -> None:
    file = tmp_path / "top"
    file.write_text(TOP1000 + extra)
    with pytest.raises(DataError, match=expected):
        read_candidates(file)


def test_an_id_with_two_texts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "top"
    file.write_text("9\tp1\tnine\tone\n8\tp1\teight\tuno\n")
    with pytest.raises(DataError, match="top:2: passage 'p1' has another text than before"):
        list(read_top1000(file).corpus)
    file.write_text("9\tp1\tnine\tone\n9\tp2\tneuf\ttwo\n")
    with pytest.raises(DataError, match="top:2: query '9' has another text than before"):
        read_top1000(file)
