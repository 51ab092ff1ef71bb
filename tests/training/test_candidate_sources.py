"""Candidates beside the query's own search, and the scores they are put on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mined import mine
from sampler_cases import examples_of

from ance_fast import Index
from ance_fast.errors import ConfigError
from ance_fast.training import AnceConfig, NegativeSampler, SamplerConfig
from ance_fast.training.candidate_sources import (
    content_ids,
    look_ahead,
    random_candidates,
    refreshed_candidates,
    run_sampler,
)
from ance_fast.training.examples import Examples
from ance_fast.training.refresh import Snapshot
from ance_fast.training.view import snapshot_view


def problem(queries: int = 12, corpus: int = 60, dim: int = 8) -> tuple[Snapshot, Examples]:
    random = np.random.default_rng(0)
    passages = random.standard_normal((corpus, dim)).astype(np.float32) + 0.5
    embedded = random.standard_normal((queries, dim)).astype(np.float32) + 0.5
    positives = [random.permutation(corpus)[: 1 + query % 3].tolist() for query in range(queries)]
    return Snapshot(passages, embedded, Index.build(passages)), examples_of(positives, corpus)


def positives_of(examples: Examples, query: int) -> list[int]:
    return examples.positives_of(np.array([query]))[1].tolist()


def sampler_of(examples: Examples, text: str) -> NegativeSampler:
    return NegativeSampler(examples, seed=2, count=2, config=SamplerConfig.parse(text))


def test_look_ahead_is_the_search_with_one_of_the_querys_positives() -> None:
    snapshot, examples = problem()
    view = snapshot_view(snapshot, examples, topk=5)
    table = look_ahead(view, examples, 2, generation=1, step=0)
    for query, found in enumerate(table.candidates.tolist()):
        positives = positives_of(examples, query)
        others = np.array([row for row in range(60) if row not in positives])
        nearest = [
            others[np.argsort(-(snapshot.passages[others] @ snapshot.passages[row]))[:5]].tolist() for row in positives
        ]
        assert found in nearest
    later = look_ahead(view, examples, 2, generation=2, step=0)
    assert (later.candidates != table.candidates).any()


def test_random_candidates_are_spread_over_the_corpus_and_differ_by_generation() -> None:
    examples = examples_of([[0]] * 400, 50)
    first, again, later = (random_candidates(examples, 20, 1, generation=g, step=0) for g in (1, 1, 2))
    np.testing.assert_array_equal(first.candidates, again.candidates)
    assert (first.candidates != later.candidates).mean() > 0.9
    counts = np.bincount(first.candidates.ravel(), minlength=50)
    assert np.abs(counts - 160).max() < 5 * np.sqrt(160)
    assert np.isnan(first.scores).all()


def test_a_refresh_with_the_default_sampler_mines_the_top_k_alone() -> None:
    snapshot, examples = problem()
    table = refreshed_candidates(snapshot, examples, sampler_of(examples, "ance"), None, topk=9, generation=2, step=4)
    mined = mine(snapshot, examples, topk=9, generation=2, step=4)
    np.testing.assert_array_equal(table.candidates, mined.candidates)
    np.testing.assert_array_equal(table.scores, mined.scores)
    assert (table.log_weights, table.source, table.generation, table.step) == (None, "index", 2, 4)


def test_a_refresh_unites_what_its_sampler_names() -> None:
    snapshot, examples = problem()
    sampler = sampler_of(examples, "ance-tele,sources=index+look-ahead+momentum+random")
    first = refreshed_candidates(snapshot, examples, sampler, None, topk=9, generation=0, step=0)
    assert first.sources == ("index", "look-ahead", "random")
    table = refreshed_candidates(snapshot, examples, sampler, first, topk=9, generation=1, step=4)
    assert table.sources == ("index", "look-ahead", "momentum", "random")
    assert table.origins is not None
    own = mine(snapshot, examples, topk=9, generation=1, step=4).candidates
    for query, row in enumerate(table.candidates):
        for source, expected in ((0, own[query]), (2, first.candidates[query, :9])):
            found = row[(table.origins[query] >> source & 1).astype(bool)]
            assert set(found.tolist()) == set(expected[expected >= 0].tolist())
        assert not set(row.tolist()) & set(positives_of(examples, query))


def test_a_refresh_scores_the_candidates_of_every_source_alike() -> None:
    snapshot, examples = problem()
    sampler = sampler_of(examples, "nv-retriever,sources=index+random,percentage=0.8,keep=none")
    table = refreshed_candidates(snapshot, examples, sampler, None, topk=30, generation=1, step=0)
    lengths = np.linalg.norm(snapshot.queries, axis=1)[:, None] * np.linalg.norm(snapshot.passages, axis=1)
    cosine = snapshot.queries @ snapshot.passages.T / lengths
    for query in range(len(examples)):
        positive = cosine[query, positives_of(examples, query)].min()
        left = table.candidates[query][table.candidates[query] >= 0]
        np.testing.assert_allclose(table.scores[query, : len(left)], cosine[query, left], rtol=1e-5, atol=1e-6)
        assert (np.diff(table.scores[query, : len(left)]) <= 0).all()
        assert (cosine[query, left] <= positive - abs(positive) * 0.2 + 1e-6).all()
    assert table.filtered["percentage"] > 0


def test_momentum_alone_begins_with_the_whole_corpus() -> None:
    snapshot, examples = problem()
    sampler = sampler_of(examples, "ance,sources=momentum")
    table = refreshed_candidates(snapshot, examples, sampler, None, topk=9, generation=0, step=0)
    assert table.candidates.shape == (12, 0)
    assert (sampler(table, np.arange(12), 0) >= 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ance,sources=index+dataset", "the data set brings no negatives"),
        ("ance,teacher_max=0.1", "there are no teacher scores"),
        ("nv-retriever,scores=teacher", "there are no teacher scores"),
    ],
)
def test_a_run_refuses_a_sampler_that_needs_what_there_is_not(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sampler(examples_of([[0]], 10), AnceConfig(output_dir="x", sampler=text))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=20), st.integers(0, 20))
def test_content_ids_are_equal_exactly_where_token_lists_are(lists: list[list[int]], cut: int) -> None:
    class Store:
        shards = tuple(
            (np.array([t for one in part for t in one], np.uint16), np.cumsum([0, *map(len, part)], dtype=np.int32))
            for part in (lists[:cut], lists[cut:])
        )

    ids = content_ids(Store())  # type: ignore[arg-type]
    assert ids.dtype == np.int64
    for i, one in enumerate(lists):
        for j, other in enumerate(lists):
            assert (ids[i] == ids[j]) == (one == other)
