"""False negatives counted by judgements, against counting pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.training.judgements import find_judgements

QUERIES, PASSAGES = 4, 9
grades = st.dictionaries(
    st.sampled_from([f"q{i}" for i in range(QUERIES + 2)]),
    st.dictionaries(st.sampled_from([f"d{i}" for i in range(PASSAGES + 2)]), st.integers(-1, 2), max_size=5),
    max_size=5,
)
pairs = st.sets(st.tuples(st.integers(0, QUERIES - 1), st.integers(0, PASSAGES - 1)), max_size=8)
drawn = st.lists(
    st.tuples(st.integers(0, QUERIES - 1), st.lists(st.integers(-1, PASSAGES - 1), min_size=3, max_size=3))
)


class Ids:
    def positions(self, ids: Sequence[str]) -> np.ndarray:
        rows = [int(name[1:]) for name in ids]
        return np.array([row if row < PASSAGES else -1 for row in rows], dtype=np.int64)


@settings(deadline=None)
@given(st.lists(grades, max_size=3), pairs, drawn)
def test_shares_are_those_of_counting_pair_by_pair(
    sources: list[dict[str, dict[str, int]]], positives: set[tuple[int, int]], batch: list[tuple[int, list[int]]]
) -> None:
    """The highest grade of any source counts; positives, foreign queries and foreign passages do not."""
    known: dict[tuple[int, int], int] = {}
    for source in sources:
        for query, judged in source.items():
            for document, grade in judged.items():
                pair = int(query[1:]), int(document[1:])
                if pair[0] < QUERIES and pair[1] < PASSAGES and pair not in positives:
                    known[pair] = max(known.get(pair, -9), grade)
    found = find_judgements(
        [f"q{i}" for i in range(QUERIES)],
        Ids(),
        np.array(sorted(positives), dtype=np.int64).reshape(-1, 2),
        sources,
        count=PASSAGES,
    )
    if not known:
        assert found is None
        return
    assert found is not None
    queries = np.array([query for query, _ in batch], dtype=np.int64)
    rows = np.array([row for _, row in batch], dtype=np.int64).reshape(-1, 3)
    shares = found.shares(queries, rows)
    present = [(query, row) for query, rows in batch for row in rows if row >= 0]
    assert shares["negatives_judged"].tolist() == [float(pair in known) for pair in present]
    assert shares["false_negative_rate"].tolist() == [float(known.get(pair, 0) > 0) for pair in present]
    assert shares["false_negative_rate_judged"].tolist() == [float(known[p] > 0) for p in present if p in known]


def test_without_a_judgement_of_anything_but_positives_there_is_nothing_to_count() -> None:
    positives = np.array([[0, 1]], dtype=np.int64)
    assert find_judgements(["q0"], Ids(), positives, [{"q0": {"d1": 2}}, {}], count=PASSAGES) is None
