from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.index.ids import IdTable
from ance_fast.index.result import SearchResult, padded, ranked


def result() -> SearchResult:
    scores = np.array([[3, 2, -np.inf], [-np.inf] * 3, [5, 4, 4]], np.float32)
    positions = np.array([[2, 0, -1], [-1] * 3, [1, 0, 2]])
    return SearchResult(scores, positions, IdTable.from_ids(["a", "b", "c"], 3))


def test_ids_follow_rank_order_without_padding() -> None:
    assert result().ids == [["c", "a"], [], ["b", "a", "c"]]


def test_a_run_holds_scores_by_id_in_rank_order() -> None:
    run = result().to_run(["q1", "q2", "q3"])
    assert run == {"q1": {"c": 3, "a": 2}, "q2": {}, "q3": {"b": 5, "a": 4, "c": 4}}
    assert list(run["q1"]) == ["c", "a"]


def test_a_run_needs_one_distinct_id_a_query() -> None:
    with pytest.raises(ConfigError, match="2 query ids for the results of 3 queries"):
        result().to_run(["q1", "q2"])
    with pytest.raises(ConfigError, match="'q1' is given twice"):
        result().to_run(["q1", "q2", "q1"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12))
def test_ranking_sorts_by_falling_score_then_position_with_padding_last(row: list[tuple[int, bool]]) -> None:
    positions = np.array([[-1 if padding else place for place, (_, padding) in enumerate(row)]])
    scores, order = ranked(np.array([[score for score, _ in row]], np.float32), positions)
    kept = sorted((-score, place) for place, (score, padding) in enumerate(row) if not padding)
    assert order[0].tolist() == [place for _, place in kept] + [-1] * (len(row) - len(kept))
    assert scores[0].tolist() == [-score for score, _ in kept] + [-np.inf] * (len(row) - len(kept))


def test_padding_fills_up_to_k_columns() -> None:
    scores, positions = padded(np.ones((2, 1), np.float32), np.zeros((2, 1), np.int64), 3)
    assert scores.tolist() == [[1, -np.inf, -np.inf]] * 2
    assert positions.tolist() == [[0, -1, -1]] * 2
    assert scores.dtype == np.float32
