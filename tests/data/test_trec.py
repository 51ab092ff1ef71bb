from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.trec import read_run, write_run
from ance_fast.errors import DataError
from ance_fast.evaluation import write_ranks


def test_a_run_is_written_in_the_order_that_is_measured_with_ranks_from_one(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "run.trec"
    write_run(file, {"q2": {"b": 1.0, "a": 1.0 + 1e-12, "c": 2.5}, "q1": {"z": -0.1}}, tag="mine")
    assert file.read_text().splitlines() == [
        "q2 Q0 c 1 2.5 mine",
        "q2 Q0 b 2 1.0 mine",
        "q2 Q0 a 3 1.000000000001 mine",
        "q1 Q0 z 1 -0.1 mine",
    ]
    write_ranks(tmp_path / "board.tsv", file)
    assert (tmp_path / "board.tsv").read_text().split()[:9] == ["q2", "c", "1", "q2", "b", "2", "q2", "a", "3"]


identifiers = st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=6).filter(
    # A byte order mark that opens a file is dropped, so no id may begin with one.
    lambda text: len(text.split()) == 1 and not text.startswith("\ufeff")
)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        identifiers,
        st.dictionaries(identifiers, st.floats(allow_nan=False), min_size=1, max_size=5),
        max_size=4,
    ),
    st.sampled_from(["run", "run.gz"]),
)
def test_a_run_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]], name: str
) -> None:
    file = tmp_path_factory.mktemp("run") / name
    write_run(file, run)
    assert read_run(file) == run


def test_a_zipped_run_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_run(tmp_path / "a.gz", {"q": {"d": 1.0}})
    write_run(tmp_path / "b.gz", {"q": {"d": 1.0}})
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_an_ms_marco_run_scores_by_rank(tmp_path: Path) -> None:
    file = tmp_path / "run.tsv"
    file.write_text("q\ta\t1\nq\tb\t2\n")
    assert read_run(file) == {"q": {"a": -1.0, "b": -2.0}}


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("q Q0 d 1 0.5\n", 1, "got 5 columns"),
        ("q Q0 d 1 0.5 t\nq d 1\n", 2, "expected 6 columns as in the first line, got 3"),
        ("q Q0 d 1 high t\n", 1, "score 'high' is not a number"),
        ("q d 1.5\n", 1, "rank '1.5' is not a number"),
        ("q d 1_0\n", 1, "rank '1_0' is not a number"),
        ("q d " + "9" * 400 + "\n", 1, "rank '9999"),
        ("q Q0 d 1 1_0 t\n", 1, "score '1_0' is not a number"),
        ("q Q0 d 1 nan t\n", 1, "the score is NaN"),
        ("q Q0 d 1 2 t\n\nq Q0 d 2 1 t\n", 3, "document 'd' comes twice for query 'q'"),
    ],
)
def test_a_malformed_run_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, expected: str) -> None:
    file = tmp_path / "run"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_run(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("run", "tag", "expected"),
    [
        ({"a\nquery": {"d": 1.0}}, "t", "query id"),
        ({"q": {"a\tdoc": 1.0}}, "t", "document id"),
        ({"q": {"": 1.0}}, "t", "document id ''"),
        ({"q": {"d": 1.0}}, "my\trun", "tag"),
        ({"q": {"d": math.nan}}, "t", "is NaN"),
    ],
)
def test_what_a_run_file_cannot_hold_is_refused_and_nothing_is_left(
    tmp_path: Path, run: dict[str, dict[str, float]], tag: str, expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        write_run(tmp_path / "run", run, tag)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_earlier_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q": {"d": 1.0}})
    with pytest.raises(DataError):
        write_run(tmp_path / "run", {"q": {"d": 2.0}, "r": {"d": math.nan}})
    assert read_run(tmp_path / "run") == {"q": {"d": 1.0}}


def test_ids_with_blanks_are_written_with_tabs_and_read_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = {"a query": {"Vincent van Gogh": 2.0, "\u00a0d": 1.0}, "q": {"plain": 0.5}}
    write_run(tmp_path / "run", run)
    assert read_run(tmp_path / "run") == run
    assert "columns are separated by tabs" in caplog.text
