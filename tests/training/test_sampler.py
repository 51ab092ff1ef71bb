"""Uniting, filtering, weighting and drawing, against a plain reference and against the distributions they promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sampler_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import Problem, examples_of, problems
from scipy.stats import chisquare

from ance_fast.errors import ConfigError
from ance_fast.training import NegativeSampler, NegativeTable, SamplerConfig


def table_of(
    rows: np.ndarray, scores: np.ndarray | None = None, source: str = "index", generation: int = 1
) -> NegativeTable:
    given = -np.arange(rows.size, dtype=np.float32).reshape(rows.shape) if scores is None else scores
    return NegativeTable(rows.astype(np.int32), given.astype(np.float32), source, generation, 0)


def one_query(config: SamplerConfig, corpus: int = 1000, count: int = 1) -> NegativeSampler:
    return NegativeSampler(examples_of([[0]], corpus), seed=5, count=count, config=config)


def listed(table: NegativeTable, query: int = 0) -> list[int]:
    return [row for row in table.candidates[query].tolist() if row >= 0]


@settings(max_examples=120, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_no_positive_nor_its_kin_is_ever_a_negative_and_draws_are_distinct(problem: Problem, step: int) -> None:
    sampler = problem.sampler
    united, selected, _ = problem.negatives()
    queries = np.arange(len(sampler.examples))
    # Also straight from tables that nobody has cleaned.
    for table in (united, selected, *problem.tables):
        for query, row in enumerate(sampler(table, queries, step)):
            chosen = row[row >= 0].tolist()
            assert len(set(chosen)) == len(chosen)
            assert not any(reference.kin(sampler, query, passage) for passage in chosen)
    for table in (united, selected):
        assert not any(reference.kin(sampler, query, row) for query in queries for row in listed(table, query))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_uniting_is_that_of_the_reference_with_every_candidate_accounted_for(problem: Problem) -> None:
    united = problem.sampler.unite(problem.tables, generation=3, step=7)
    total: dict[str, int] = dict.fromkeys(united.filtered, 0)
    for query in range(len(problem.sampler.examples)):
        expected, counts = reference.unite(problem.sampler, problem.tables, query, 3)
        assert united.origins is not None
        width = len(expected)
        assert listed(united, query) == [row for row, _, _ in expected]
        np.testing.assert_array_equal(united.scores[query, :width], [score for _, score, _ in expected])
        assert united.origins[query, :width].tolist() == [origins for _, _, origins in expected]
        assert (united.candidates[query, width:] == -1).all()
        for reason, count in counts.items():
            total[reason] += count
    total["candidates"] = sum(int((table.candidates >= 0).sum()) for table in problem.tables)
    assert united.filtered == total
    left = int((united.candidates >= 0).sum())
    assert left + sum(united.filtered.values()) == 2 * united.filtered["candidates"]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_filters_order_and_weights_are_those_of_the_reference(problem: Problem) -> None:
    united, selected, what = problem.negatives()
    total: dict[str, int] = {}
    for query in range(len(problem.sampler.examples)):
        rows, scores, weights, counts = reference.select(problem.sampler, united, query, what)
        assert listed(selected, query) == rows
        np.testing.assert_array_equal(selected.scores[query, : len(rows)], np.array(scores, np.float32))
        if selected.log_weights is not None:
            np.testing.assert_allclose(selected.log_weights[query, : len(rows)], weights, rtol=1e-6, atol=1e-6)
            assert np.isneginf(selected.log_weights[query, len(rows) :]).all()
        for column, row in enumerate(rows):
            assert selected.origins is not None
            assert united.origins is not None
            before = united.candidates[query].tolist().index(row)
            assert selected.origins[query, column] == united.origins[query, before]
        for reason, count in counts.items():
            total[reason] = total.get(reason, 0) + count
    for reason, count in selected.filtered.items():
        assert count == total.get(reason, united.filtered.get(reason, 0)), reason


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_draws_are_those_of_the_reference(problem: Problem, step: int) -> None:
    _, selected, _ = problem.negatives()
    queries = np.arange(len(problem.sampler.examples))
    for table in (selected, problem.tables[0]):
        drawn = problem.sampler(table, queries, step)
        assert drawn.tolist() == [reference.draw(problem.sampler, table, query, step) for query in queries]


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_querys_draw_depends_on_no_other_query_of_the_batch(problem: Problem, step: int, random: object) -> None:
    _, selected, _ = problem.negatives()
    queries = np.arange(len(problem.sampler.examples))
    whole = problem.sampler(selected, queries, step)
    random.shuffle(queries)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(problem.sampler(selected, queries, step), whole[queries])
    np.testing.assert_array_equal(problem.sampler(selected, queries[:1], step), whole[queries[:1]])


@settings(max_examples=50, deadline=None)
@given(problems())
def test_some_queries_alone_have_the_candidates_that_they_have_among_all(problem: Problem) -> None:
    sampler, examples = problem.sampler, problem.sampler.examples
    united, selected, what = problem.negatives()
    some = np.arange(len(examples))[::-2]
    parts = [replace(table, candidates=table.candidates[some], scores=table.scores[some]) for table in problem.tables]
    part = sampler.unite(parts, generation=3, step=7, queries=some)
    width = part.candidates.shape[1]
    assert united.origins is not None
    np.testing.assert_array_equal(part.candidates, united.candidates[some, :width])
    np.testing.assert_array_equal(part.origins, united.origins[some, :width])
    cut = {name: None if what[name] is None else what[name][some, :width] for name in ("scores", "teacher_scores")}
    flat = np.concatenate([np.arange(*examples.positive_offsets[[query, query + 1]]) for query in some])
    chosen = sampler.select(
        part, **cut, positive_scores=what["positive_scores"][flat], answers=what["answers"][some, :width], queries=some
    )
    width = chosen.candidates.shape[1]
    np.testing.assert_array_equal(chosen.candidates, selected.candidates[some, :width])
    if selected.log_weights is not None:
        np.testing.assert_array_equal(chosen.log_weights, selected.log_weights[some, :width])


@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
def test_results_are_the_same_for_any_number_of_threads(weighting: str) -> None:
    random = np.random.default_rng(0)
    queries, corpus = 3000, 500
    examples = examples_of([[int(row)] for row in random.integers(0, corpus, queries)], corpus)
    config = SamplerConfig(weighting=weighting, min_score=-1.0, per_source=60, keep=40)
    sampler = NegativeSampler(examples, seed=1, count=4, config=config, contents=random.integers(0, 400, corpus))
    shape = queries, 100
    tables = [
        table_of(random.integers(0, corpus, shape), random.standard_normal(shape), source) for source in ("a", "b")
    ]
    scores = random.standard_normal((queries, 200)).astype(np.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            united = sampler.unite(tables, generation=1, step=0)
            selected = sampler.select(united, scores=scores[:, : united.candidates.shape[1]])
            results.append((united, selected, sampler(selected, np.arange(queries), 9)))
    finally:
        torch.set_num_threads(before)
    (one, chosen, drawn), (other, chosen_other, drawn_other) = results
    for left, right in ((one, other), (chosen, chosen_other)):
        assert left.filtered == right.filtered
        for name in ("candidates", "scores", "origins", "log_weights"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    np.testing.assert_array_equal(drawn, drawn_other)


def test_weighted_draws_follow_their_weights_without_replacement() -> None:
    weights = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    queries = 20_000
    examples = examples_of([[0]] * queries, 100)
    rows = np.tile(np.arange(1, 6), (queries, 1))
    table = replace(table_of(rows), log_weights=np.tile(np.log(weights), (queries, 1)).astype(np.float32))
    drawn = NegativeSampler(examples, seed=3, count=2)(table, np.arange(queries), 0) - 1
    share = weights / weights.sum()
    assert chisquare(np.bincount(drawn[:, 0], minlength=5), share * queries).pvalue > 0.01
    # The second is drawn from what the first has left.
    pairs = share[:, None] * share[None] / (1 - share[:, None])
    off = ~np.eye(5, dtype=bool)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(drawn.T), 1)
    assert counts[~off].sum() == 0
    assert chisquare(counts[off], pairs[off] * queries).pvalue > 0.01


def test_equal_weights_draw_what_no_weights_draw() -> None:
    examples = examples_of([[0]] * 500, 1000)
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(1, 101), (500, 1)), axis=1)
    plain = table_of(rows)
    weighted = replace(plain, log_weights=np.full(rows.shape, -7.5, dtype=np.float32))
    draws = [NegativeSampler(examples, seed=3, count=9)(table, np.arange(500), 4) for table in (plain, weighted)]
    np.testing.assert_array_equal(*draws)


def test_top_always_draws_the_first_in_order() -> None:
    sampler = one_query(SamplerConfig(weighting="top"), count=3)
    table = sampler.select(table_of(np.arange(1, 101)[None]))
    for step in range(200):
        assert sampler(table, np.array([0]), step).tolist() == [[1, 2, 3]]


def test_margin_bins_are_drawn_evenly_however_many_they_hold() -> None:
    queries = 6000
    examples = examples_of([[0]] * queries, 100)
    config = SamplerConfig(weighting="margin-bins", bins=4)
    sampler = NegativeSampler(examples, seed=3, count=1, config=config)
    # One candidate in the first quarter of the range, none in the second, two in the third, twenty in the last.
    scores = np.concatenate([[1.0], [0.4, 0.3], np.linspace(0.2, 0.0, 20)])
    rows = np.tile(np.arange(1, 24), (queries, 1))
    table = sampler.select(table_of(rows, np.tile(scores, (queries, 1))))
    drawn = sampler(table, np.arange(queries), 0)[:, 0]
    counts = [int((drawn == 1).sum()), int(((drawn == 2) | (drawn == 3)).sum()), int((drawn > 3).sum())]
    assert chisquare(counts).pvalue > 0.01


def test_a_candidate_of_several_sources_is_counted_once_and_remembers_them() -> None:
    sampler = one_query(SamplerConfig())
    tables = [table_of(np.array([[4, 5, 6]]), source="index"), table_of(np.array([[6, 0, 7]]), source="bm25")]
    united = sampler.unite(tables, generation=1, step=0)
    assert united.source == "index+bm25"
    assert united.sources == ("index", "bm25")
    assert united.origins is not None
    assert dict(zip(listed(united), united.origins[0].tolist(), strict=True)) == {4: 1, 6: 3, 5: 1, 7: 2}
    assert united.filtered["positive"] == united.filtered["repeated"] == 1
    assert united.filtered_shares() == {"filtered_positive": 1 / 6, "filtered_repeated": 1 / 6}


def test_an_answer_function_is_asked_about_candidates_only_and_its_passages_go() -> None:
    sampler = one_query(SamplerConfig())
    asked = []

    def holds_answer(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        asked.extend(zip(queries.tolist(), rows.tolist(), strict=True))
        return rows % 2 == 0

    table = sampler.select(table_of(np.array([[3, 4, -1, 5]])), answers=holds_answer)
    assert asked == [(0, 3), (0, 4), (0, 5)]
    assert listed(table) == [3, 5]
    assert table.filtered["answer"] == 1


def test_a_percentage_of_a_negative_positive_score_lies_below_it() -> None:
    sampler = one_query(SamplerConfig(percentage=0.9))
    scores = np.array([[-0.9, -1.0, -1.05, -1.2]])
    table = sampler.select(table_of(np.arange(1, 5)[None], scores), positive_scores=np.array([-1.0], np.float32))
    assert listed(table) == [4]


def test_a_table_with_weights_survives_saving(tmp_path) -> None:
    sampler = one_query(SamplerConfig(weighting="softmax"))
    united = sampler.unite([table_of(np.arange(1, 9)[None])], generation=2, step=5)
    table = sampler.select(united)
    table.save(tmp_path / "table")
    again = NegativeTable.load(tmp_path / "table")
    for name in ("candidates", "scores", "log_weights", "origins"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert (again.sources, again.filtered) == (("index",), table.filtered)
    assert again.top(3).log_weights is not None
    np.testing.assert_array_equal(again.top(3).log_weights, table.log_weights[:, :3])


def test_what_a_setting_needs_and_is_not_given_is_said() -> None:
    rows = np.arange(1, 5)[None]
    two = one_query(SamplerConfig(min_score=0.0))
    united = two.unite([table_of(rows), table_of(rows, source="bm25")], generation=1, step=0)
    with pytest.raises(ConfigError, match="those of 'index\\+bm25' are not on one such scale: pass scores="):
        two.select(united)
    with pytest.raises(ConfigError, match="pass scores="):
        one_query(SamplerConfig(min_score=0.0, scores="cosine")).select(table_of(rows))
    with pytest.raises(ConfigError, match="pass positive_scores="):
        one_query(SamplerConfig(margin=0.1)).select(table_of(rows))
    with pytest.raises(ConfigError, match="pass teacher_scores="):
        one_query(SamplerConfig(teacher_max=0.1)).select(table_of(rows))
    with pytest.raises(ConfigError, match="positive_scores holds NaN"):
        one_query(SamplerConfig(margin=0.1)).select(table_of(rows), positive_scores=np.array([np.nan]))
    with pytest.raises(ConfigError, match=r"scores has shape \(1, 3\), the candidates \(1, 4\)"):
        one_query(SamplerConfig()).select(table_of(rows), scores=np.zeros((1, 3), np.float32))
    with pytest.raises(ConfigError, match="are for 2 queries, not 1"):
        one_query(SamplerConfig()).unite([table_of(np.array([[1], [2]]))], generation=1, step=0)
    with pytest.raises(ConfigError, match="0 candidate tables"):
        one_query(SamplerConfig()).unite([], generation=1, step=0)
    with pytest.raises(ValueError, match="source 0, query 0, rank 1: row 1000 of 1000 passages"):
        one_query(SamplerConfig()).unite([table_of(np.array([[1, 1000]]))], generation=1, step=0)
    with pytest.raises(ConfigError, match=r"documents has shape \(3,\), the corpus 1000 passages"):
        NegativeSampler(examples_of([[0]], 1000), seed=0, count=1, documents=np.zeros(3, np.int64))


# ---- presets ----


def test_preset_ance_draws_uniformly_from_all_that_was_retrieved() -> None:
    queries = 4000
    examples = examples_of([[0]] * queries, 100)
    rows = np.tile(np.arange(1, 21), (queries, 1))
    sampler = NegativeSampler(examples, seed=3, count=1, config=SamplerConfig.parse("ance"))
    table = sampler.select(sampler.unite([table_of(rows)], generation=1, step=0))
    np.testing.assert_array_equal(table.candidates, rows)
    assert table.log_weights is None
    drawn = sampler(table, np.arange(queries), 0)
    np.testing.assert_array_equal(drawn, sampler(table_of(rows), np.arange(queries), 0))
    assert chisquare(np.bincount(drawn[:, 0], minlength=21)[1:]).pvalue > 0.01


def test_preset_star_uses_the_top_200_only() -> None:
    sampler = one_query(SamplerConfig.parse("star"))
    table = sampler.select(sampler.unite([table_of(np.arange(1, 501)[None])], generation=0, step=0))
    assert listed(table) == list(range(1, 201))
    assert table.filtered["window"] == 300


def test_preset_ance_tele_takes_30_of_the_top_200_of_each_source() -> None:
    config = SamplerConfig.parse("ance-tele")
    assert config.sources == ("index", "look-ahead", "momentum")
    sampler = one_query(config, corpus=2000)
    tables = [table_of(np.arange(1, 301)[None] + 400 * i, source=name) for i, name in enumerate(config.sources)]
    table = sampler.select(sampler.unite(tables, generation=4, step=0))
    found = np.array(listed(table))
    for place in range(3):
        mine = found[(found > 400 * place) & (found <= 400 * place + 200)]
        assert len(mine) == 30
        assert np.ptp(mine) > 100
    assert len(found) == 90
    other = sampler.select(sampler.unite(tables, generation=5, step=0))
    assert set(listed(other)) != set(listed(table))


def test_preset_nv_retriever_takes_the_best_10_below_95_percent_of_the_positive() -> None:
    sampler = one_query(SamplerConfig.parse("nv-retriever"))
    scores = np.linspace(0.99, 0.5, 50, dtype=np.float32)
    table = sampler.select(
        table_of(np.arange(1, 51)[None]), scores=scores[None], positive_scores=np.array([0.8], np.float32)
    )
    below = np.flatnonzero(scores <= 0.76)[:10]
    assert listed(table) == (below + 1).tolist()
    assert table.filtered["percentage"] == below[0]


def test_preset_simans_draws_most_where_scores_are_near_the_positive() -> None:
    queries = 20_000
    examples = examples_of([[0]] * queries, 100)
    sampler = NegativeSampler(examples, seed=3, count=1, config=SamplerConfig.parse("simans,a=0.5,b=-0.5"))
    scores = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    rows = np.tile(np.arange(1, 6), (queries, 1))
    table = sampler.select(
        table_of(rows, np.tile(scores, (queries, 1))), positive_scores=np.full(queries, 2.5, np.float32)
    )
    drawn = sampler(table, np.arange(queries), 0)[:, 0]
    share = np.exp(-0.5 * (scores - 2.5 + 0.5) ** 2)
    assert chisquare(np.bincount(drawn, minlength=6)[1:], share / share.sum() * queries).pvalue > 0.01
