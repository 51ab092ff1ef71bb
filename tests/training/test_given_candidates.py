"""Run files as candidates and as a teacher's scores."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import examples_of

from ance_fast.data import write_run
from ance_fast.errors import ConfigError, DataError
from ance_fast.training import AnceConfig
from ance_fast.training.candidate_sources import run_sampler
from ance_fast.training.examples import Examples
from ance_fast.training.given_candidates import (
    ScoredPairs,
    pairs_of,
    read_pairs,
    refuse_unreadable,
    run_candidates,
)


class _Ids:
    """Stands for a token store where only ids matter."""

    chunked = None

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: list[str]) -> np.ndarray:
        return np.array([self.ids.index(one) if one in self.ids else -1 for one in ids], dtype=np.int64)


def named(positives: list[list[int]], corpus: int) -> Examples:
    """Queries q0, q1, ... and documents d0, d1, ...."""
    queries, passages = ([f"{kind}{i}" for i in range(n)] for kind, n in (("q", len(positives)), ("d", corpus)))
    stores: dict[str, Any] = {"queries": _Ids(queries), "passages": _Ids(passages)}
    return replace(examples_of(positives, corpus), **stores)


RUN = {
    "q0": {"d3": 1.0, "gone": 9.0, "d1": 2.0, "d2": 2.0},
    "q2": {"d0": 5.0},
    "another": {"d0": 1.0},
}


def test_a_run_becomes_candidates_in_its_order_without_strangers() -> None:
    table = run_candidates(named([[0], [1], [2]], 4), RUN, topk=2, source="bm25")
    assert table.candidates.tolist() == [[1, 2], [-1, -1], [0, -1]]
    assert table.scores.tolist() == [[2.0, 2.0], [-np.inf, -np.inf], [5.0, -np.inf]]
    assert table.source == "bm25"


def test_a_file_says_what_its_run_says_and_what_it_lacks_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = named([[0], [1], [2]], 4)
    write_run(tmp_path / "run.trec", RUN)
    with caplog.at_level(logging.WARNING):
        found = read_pairs(tmp_path / "run.trec", examples)
    expected = pairs_of(examples, RUN)
    for name in ("queries", "rows", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert "1 lines name a document that is not in the corpus (first: " in caplog.text
    assert "run.trec:1)" in caplog.text
    assert "says nothing about 1 training queries (first: 'q1')" in caplog.text


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(0, 9)), st.floats(-5, 5, allow_subnormal=False), max_size=20
    )
)
def test_a_pair_has_its_score_and_every_other_pair_has_none(scores: dict[tuple[int, int], float]) -> None:
    keys = np.array(list(scores), dtype=np.int64).reshape(-1, 2)
    pairs = ScoredPairs.ordered(keys[:, 0], keys[:, 1], np.array(list(scores.values())))
    asked = np.tile(np.arange(-1, 10), (4, 1))
    found = pairs.of(np.arange(4)[:, None], asked)
    for query in range(4):
        for row, score in zip(asked[query].tolist(), found[query].tolist(), strict=True):
            np.testing.assert_equal(score, np.float32(scores.get((query, row), np.nan)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the run file is empty"),
        ("\n \n", ":1: the run file is empty"),
        ("q0 Q0 d1 1 2.5\n", ":1: expected `query Q0 document rank score tag`"),
        ("q0 Q0 d1 1 2.5 x\nq0 Q0 d2 2 high x\n", ":2: score 'high' is not a number"),
        ("x9 Q0 d1 1 2.5 x\nx8 Q0 d1 1 2.5 x\n", ":1: query 'x9' and all others are no training queries"),
        ("x9 Q0 d1 1 2.5 x\nq1 Q0 e1 1 2.5 x\n", ":2: document 'e1' and all others are not in the corpus"),
        (
            "q0 Q0 d1 1 2.5 x\nq1 Q0 d1 1 2.5 x\nq0 Q0 d2 1 2 x\nq1 Q0 d1 3 0.5 x\nq0 Q0 d1 3 0.5 x\n",
            ":4: document 'd1' comes twice for query 'q1'",
        ),
    ],
)
def test_a_run_file_that_is_of_no_use_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_pairs(path, named([[0], [1], [2]], 4))
    assert str(error.value).startswith(f"{path}{message}")


def test_a_file_is_looked_at_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "empty.trec").touch()
    (tmp_path / "good.trec").write_text("q0 Q0 d1 1 2.5 x\n", encoding="utf-8")
    refuse_unreadable({"good": str(tmp_path / "good.trec")})
    with pytest.raises(DataError, match=r"empty.trec:1: the run file is empty"):
        refuse_unreadable({"good": str(tmp_path / "good.trec"), "empty": str(tmp_path / "empty.trec")})
    with pytest.raises(DataError, match=r"gone.trec: no such file"):
        refuse_unreadable({"gone": str(tmp_path / "gone.trec")})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: a pipe cannot be read again"):
        refuse_unreadable({"pipe": str(tmp_path / "pipe")})


def test_a_samplers_tables_and_teacher_come_from_files_and_the_data_set(tmp_path: Path) -> None:
    examples = replace(named([[0], [1], [2]], 4), given=np.array([[0, 2], [2, 1]]))
    path = str(tmp_path / "run.trec")
    write_run(path, {**RUN, "q0": {**RUN["q0"], "d0": 3.0}})
    files = {"tas-b": path, "teacher": path}
    text = "ance,sources=index+tas-b+dataset,teacher_max=2"
    sampler = run_sampler(examples, AnceConfig(output_dir="x", sampler=text, topk=2, candidates=files))
    # The two best that are no positives: passage 0, the best of all for the first query, is one.
    assert sampler.tables["tas-b"].candidates.tolist() == [[1, 2], [-1, -1], [0, -1]]
    assert sampler.tables["dataset"].candidates.tolist() == [[2], [-1], [1]]
    assert set(sampler.tables) == {"tas-b", "dataset"}, "a teacher is no source unless it is named as one"
    assert sampler.teacher is not None
    np.testing.assert_array_equal(sampler.teacher.of(np.array([0, 1]), np.array([3, 3])), np.float32([1.0, np.nan]))
    brought = run_sampler(examples, AnceConfig(output_dir="x", sampler="ance,teacher_max=2"), {"q1": {"d3": 7.0}})
    assert brought.teacher is not None
    assert brought.teacher.of(np.array([1]), np.array([3])).tolist() == [7.0]


def test_a_teacher_that_candidates_are_compared_with_must_know_the_positives(tmp_path: Path) -> None:
    path = tmp_path / "teacher.trec"
    write_run(path, {"q0": {"d0": 1.0, "d3": 0.5}, "q1": {"d3": 0.5}})
    examples = named([[0], [1]], 4)
    files = {"teacher": str(path)}
    run_sampler(examples, AnceConfig(output_dir="x", sampler="ance,teacher_max=0.1", candidates=files))
    message = "teacher.trec: no score of query 'q1' with its positive 'd1' \\(1 of 2 positives have none\\)"
    with pytest.raises(DataError, match=message):
        run_sampler(examples, AnceConfig(output_dir="x", sampler="nv-retriever,scores=teacher", candidates=files))


@pytest.mark.parametrize(
    ("sampler", "candidates", "message"),
    [
        ("ance", {"tas-b": "x"}, "candidates: nothing uses 'tas-b'"),
        ("ance", {"teacher": "x"}, "candidates: nothing uses 'teacher'"),
        ("ance,sources=index", {"index": "x"}, "candidates: 'index' cannot name a run file"),
        ("ance,sources=a/b", {"a/b": "x"}, "candidates: 'a/b' cannot name a run file"),
    ],
)
def test_run_files_that_nothing_uses_or_that_hide_a_source_are_refused(
    sampler: str, candidates: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AnceConfig(output_dir="x", sampler=sampler, candidates=candidates)
