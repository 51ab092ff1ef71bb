"""Candidate tables and draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import examples_of

from ance_fast.errors import ArtifactError
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import (
    NegativeTable,
    choose_positives,
    draw_negatives,
    given_table,
    mined_table,
    random_table,
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Examples, np.ndarray]:
    corpus = draw(st.integers(2, 30))
    some = st.sets(st.integers(0, corpus - 1), min_size=1, max_size=corpus)
    positives = [sorted(rows) for rows in draw(st.lists(some, min_size=1, max_size=8))]
    width = draw(st.integers(1, corpus))
    found = np.full((len(positives), width), -1, dtype=np.int64)
    for row in found:
        permutation = draw(st.permutations(range(corpus)))
        count = draw(st.integers(0, width))
        row[:count] = permutation[:count]
    return examples_of(positives, corpus), found


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000), st.booleans())
def test_a_positive_is_never_a_negative_and_draws_are_distinct(
    problem: tuple[Examples, np.ndarray], count: int, seed: int, step: int, mined: bool
) -> None:
    examples, found = problem
    scores = -np.arange(found.shape[1], dtype=np.float32)[None].repeat(len(found), 0)
    table = mined_table(examples, found, scores, "index", 1, 0) if mined else random_table(examples)
    queries = np.arange(len(examples))
    drawn = draw_negatives(table, examples, queries, count, seed=seed, step=step)
    assert drawn.shape == (len(examples), count)
    for query, row in enumerate(drawn):
        positives = set(examples.positives_of(np.array([query]))[1].tolist())
        chosen = [value for value in row.tolist() if value >= 0]
        assert len(chosen) == min(count, len(examples.passages) - len(positives))
        assert len(set(chosen)) == len(chosen)
        assert not positives & set(chosen)
        if mined:
            candidates = set(table.candidates[query].tolist()) - {-1}
            assert len(candidates & set(chosen)) == min(count, len(candidates))


@settings(max_examples=30, deadline=None)
@given(problems())
def test_mining_keeps_the_retrieved_order_and_drops_positives_only(problem: tuple[Examples, np.ndarray]) -> None:
    examples, found = problem
    scores = np.linspace(1, 0, found.size).reshape(found.shape).astype(np.float32)
    table = mined_table(examples, found, scores, "index", 3, 7)
    for query, row in enumerate(found):
        positives = set(examples.positives_of(np.array([query]))[1].tolist())
        expected = [(value, score) for value, score in zip(row, scores[query], strict=True) if value >= 0]
        expected = [pair for pair in expected if pair[0] not in positives]
        kept = table.candidates[query] >= 0
        assert table.candidates[query][kept].tolist() == [value for value, _ in expected]
        assert table.scores[query][kept].tolist() == [score for _, score in expected]
        assert np.isneginf(table.scores[query][~kept]).all()


def test_draws_depend_on_seed_generation_query_and_step_but_not_on_the_batch() -> None:
    examples = examples_of([[0]] * 50, 1000)
    found = np.tile(np.arange(1, 201), (50, 1))
    table = mined_table(examples, found, np.zeros(found.shape, np.float32), "index", 1, 0)
    later = mined_table(examples, found, np.zeros(found.shape, np.float32), "index", 2, 0)
    queries = np.arange(50)
    whole = draw_negatives(table, examples, queries, 4, seed=1, step=5)
    parts = [
        draw_negatives(table, examples, queries[part], 4, seed=1, step=5) for part in (slice(30, 50), slice(0, 30))
    ]
    np.testing.assert_array_equal(np.concatenate(parts[::-1]), whole)
    for other in (
        draw_negatives(table, examples, queries, 4, seed=2, step=5),
        draw_negatives(table, examples, queries, 4, seed=1, step=6),
        draw_negatives(later, examples, queries, 4, seed=1, step=5),
    ):
        assert (other != whole).mean() > 0.9


def test_candidates_are_drawn_uniformly() -> None:
    examples = examples_of([[0]], 100)
    found = np.arange(1, 21)[None]
    table = mined_table(examples, found, np.zeros((1, 20), np.float32), "index", 1, 0)
    counts = np.zeros(21)
    for step in range(4000):
        counts[draw_negatives(table, examples, np.array([0]), 2, seed=0, step=step)[0]] += 1
    # 400 expected a candidate; five standard deviations of a binomial.
    assert np.abs(counts[1:] - 400).max() < 5 * np.sqrt(8000 * 0.05 * 0.95)


def test_positives_are_chosen_uniformly_among_a_querys_own() -> None:
    examples = examples_of([[3], [1, 5, 9]], 10)
    chosen = np.array([choose_positives(examples, np.array([0, 1]), seed=0, step=step) for step in range(3000)])
    assert set(chosen[:, 0]) == {3}
    values, counts = np.unique(chosen[:, 1], return_counts=True)
    assert values.tolist() == [1, 5, 9]
    assert np.abs(counts - 1000).max() < 150


def test_the_negatives_a_data_set_brings_become_candidates() -> None:
    given_pairs = np.array([[1, 4], [0, 2], [1, 0], [1, 3]])
    table = given_table(examples_of([[0], [3]], 10, given_pairs))
    assert [sorted(set(row.tolist()) - {-1}) for row in table.candidates] == [[2], [0, 4]]


def test_a_table_survives_saving_and_damage_is_noticed(tmp_path: Path) -> None:
    examples = examples_of([[0], [1]], 10)
    table = mined_table(examples, np.array([[2, 3], [4, -1]]), np.ones((2, 2), np.float32), "index", 4, 9)
    table.save(tmp_path / "table")
    again = NegativeTable.load(tmp_path / "table")
    np.testing.assert_array_equal(again.candidates, table.candidates)
    assert (again.source, again.generation, again.step) == ("index", 4, 9)
    (tmp_path / "table" / "scores.npy").unlink()
    with pytest.raises(ArtifactError, match=r"scores.npy: missing"):
        NegativeTable.load(tmp_path / "table")
