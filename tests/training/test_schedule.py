"""Schedules say at which optimizer steps negatives are refreshed."""

from __future__ import annotations

import pytest

from ance_fast.errors import ConfigError
from ance_fast.training.schedule import parse_schedule


def atlas_steps(text: str, max_steps: int) -> list[int]:
    """Atlas' own rule: the first range that holds the step decides, counted from the range's start."""
    ranges = [(int(r.split("-")[0]), int(r.split("-")[1].split(":")[0]), int(r.split(":")[1])) for r in text.split(",")]
    due = []
    for step in range(1, max_steps):
        inside = [(start, every) for start, end, every in ranges if start <= step < end]
        if inside and (step - inside[0][0]) % inside[0][1] == 0:
            due.append(step)
    return due


@pytest.mark.parametrize("text", ["0-1000:500,1000-9999:1000", "0-100:30,100-350:40", "20-60:15,80-9999:100"])
def test_ranges_are_read_as_atlas_reads_them(text: str) -> None:
    assert parse_schedule(text, 1, "x").steps(3500) == atlas_steps(text, 3500)


def test_a_last_range_without_an_end_runs_to_the_end_of_training() -> None:
    assert parse_schedule("0-1000:500,1000-:1000", 1, "x").steps(4000) == [500, 1000, 2000, 3000]


def test_one_interval_may_be_epochs_and_counts_from_the_first_refresh() -> None:
    assert parse_schedule("2 epochs", 10, "x").steps(70) == [20, 40, 60]
    assert parse_schedule(20, 10, "x").steps(100, first=50) == [50, 70, 90]


def test_ranges_begin_with_the_first_refresh() -> None:
    assert parse_schedule("0-100:20,100-:50", 1, "x").steps(201, first=30) == [30, 40, 60, 80, 100, 150, 200]
    assert parse_schedule("0-100:20", 1, "x").steps(50, first=50) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-100:0", "'0-100:0' is not START-END:STEPS"),
        ("0-100:20,100:50", "'100:50' is not START-END:STEPS"),
        ("100-100:5", "the range '100-100:5' is empty"),
        ("0-100:20,50-200:10", "the range '50-200:10' begins within the one before it"),
        ("0-:20,50-200:10", "the range '50-200:10' begins within the one before it"),
        ("sometimes", "give a number of steps or epochs"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_schedule(text, 1, "refresh_every")
