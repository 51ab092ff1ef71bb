"""Ages of the negatives in use, by interval and by generation, also over a resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.training.judgements import Judgements
from ance_fast.training.negative_log import NegativeLog

batches = st.lists(st.lists(st.integers(0, 900), min_size=1, max_size=7), min_size=1, max_size=12)


def add(log: NegativeLog, step: int, ages: list[int]) -> None:
    rows = np.arange(len(ages), dtype=np.int64)[:, None]
    log.add(step, np.zeros(len(ages), dtype=np.int64), rows, np.array(ages))


def test_ages_are_those_of_the_batches_since_each_kind_of_call(tmp_path: Path) -> None:
    log = NegativeLog(tmp_path / "negatives.jsonl")
    add(log, 0, [1, 2])
    assert log.interval() == {"negative_age": 1.5, "negative_age_max": 2}
    add(log, 1, [9])
    assert log.interval() == {"negative_age": 9, "negative_age_max": 9}
    assert log.interval() == {}
    assert log.generation() == {"stale_negative_age": 4.0, "stale_negative_age_max": 9}
    assert log.generation() == {}


@settings(deadline=None)
@given(batches, st.data())
def test_a_generation_measured_over_a_resume_is_that_of_one_run_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, ages: list[list[int]], data: st.DataObject
) -> None:
    begins = data.draw(st.integers(0, len(ages) - 1))
    killed = data.draw(st.integers(begins, len(ages)))
    path = tmp_path_factory.mktemp("log") / "negatives.jsonl"
    whole, first = NegativeLog(path.with_name("whole.jsonl")), NegativeLog(path)
    for step, batch in enumerate(ages):
        if step == begins:
            whole.generation()
        add(whole, step, batch)
        if step < killed:
            add(first, step, batch)
    resumed = NegativeLog(path)
    resumed.resume(begins)
    for step in range(killed, len(ages)):
        add(resumed, step, ages[step])
    assert resumed.generation() == whole.generation()


def test_negatives_that_no_encoder_chose_have_no_age_and_another_process_writes_nothing(tmp_path: Path) -> None:
    log = NegativeLog(tmp_path / "negatives.jsonl", writes=False)
    log.resume(0)
    log.add(0, np.array([0]), np.array([[3, -1]]), np.zeros(0, dtype=np.int64))
    assert log.interval() == log.generation() == {}
    assert not (tmp_path / "negatives.jsonl").exists()


def test_false_negatives_are_counted_between_two_lines_of_the_log(tmp_path: Path) -> None:
    judgements = Judgements(np.array([3, 4, 13]), np.array([True, False, True]), passages=10)
    log = NegativeLog(tmp_path / "negatives.jsonl", judgements=judgements)
    log.add(0, np.array([0, 1]), np.array([[3, 4], [5, -1]]), np.zeros(0, dtype=np.int64))
    log.add(0, np.array([1]), np.array([[3, 6]]), np.zeros(0, dtype=np.int64))
    assert log.interval() == {
        "negatives_judged": pytest.approx(3 / 5),
        "false_negative_rate": pytest.approx(2 / 5),
        "false_negative_rate_judged": pytest.approx(2 / 3),
    }
    assert [json.loads(line)["negatives"] for line in (tmp_path / "negatives.jsonl").read_text().splitlines()] == [3, 2]
