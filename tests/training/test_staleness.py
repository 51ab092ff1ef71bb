"""Overlap of lists, and numbers gathered between two lines of the log."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.training.staleness import IntervalStats, overlap

lists = st.lists(st.integers(0, 12), unique=True, max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(lists, lists), min_size=1, max_size=5), st.integers(1, 10))
def test_overlap_is_the_share_of_the_new_list_that_the_old_one_had(
    pairs: list[tuple[list[int], list[int]]], k: int
) -> None:
    def padded(some: list[list[int]]) -> np.ndarray:
        return np.array([entry + [-1] * (8 - len(entry)) for entry in some])

    found = overlap(padded([old for old, _ in pairs]), padded([new for _, new in pairs]), depth=k)
    expected = [len(set(old[:k]) & set(new[:k])) / len(new[:k]) if new else 1.0 for old, new in pairs]
    np.testing.assert_allclose(found, expected)


def test_an_interval_reports_means_and_maxima_once() -> None:
    stats = IntervalStats()
    stats.add("age", np.array([1, 2]), maximum=True)
    stats.add("age", np.array([9]), maximum=True)
    stats.add("margin", np.array([0.5]))
    stats.add("nothing", np.zeros(0))
    assert stats.report() == {"age": 4.0, "age_max": 9.0, "margin": pytest.approx(0.5)}
    assert stats.report() == {}
