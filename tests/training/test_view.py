"""Vectors of a moment: products, scales, and candidates of a few queries or of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mined import mine
from sampler_cases import examples_of

from ance_fast import Index
from ance_fast.training import NegativeSampler, NegativeTable, SamplerConfig
from ance_fast.training.candidate_sources import list_width, refreshed_candidates, view_candidates
from ance_fast.training.examples import Examples
from ance_fast.training.given_candidates import ScoredPairs
from ance_fast.training.refresh import Snapshot
from ance_fast.training.view import snapshot_view


def problem(
    random: np.random.Generator, queries: int = 12, corpus: int = 60, dim: int = 8
) -> tuple[Snapshot, Examples]:
    """Vectors of small whole numbers, whose products every order of summing gets exactly, with a mean that is not 0."""
    passages = random.integers(-3, 5, (corpus, dim)).astype(np.float32)
    embedded = random.integers(-3, 5, (queries, dim)).astype(np.float32)
    positives = [random.permutation(corpus)[: 1 + query % 3].tolist() for query in range(queries)]
    return Snapshot(passages, embedded, Index.build(passages)), examples_of(positives, corpus)


@pytest.mark.parametrize("scale", ["inner_product", "centred", "cosine"])
def test_scores_are_put_on_the_scale_that_filters_read(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ance_fast.training.view.BLOCK_NUMBERS", 300)
    monkeypatch.setattr("ance_fast.training.view.TILE_ROWS", 7)
    snapshot, examples = problem(np.random.default_rng(0))
    table = mine(snapshot, examples, topk=10, generation=1, step=0)
    table.candidates[3, 7:] = -1
    view, everyone = snapshot_view(snapshot, examples, topk=10), np.arange(len(examples))
    positives = examples.positives_of(everyone)
    scores, of_positives = view.on_scale(scale, table.candidates, view.inner_products(table.candidates), positives)
    queries, passages = snapshot.queries.astype(np.float64), snapshot.passages.astype(np.float64)
    if scale == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    if scale == "centred":
        passages -= passages.mean(axis=0)
    expected = np.where(
        table.candidates >= 0, np.take_along_axis(queries @ passages.T, np.maximum(table.candidates, 0), axis=1), np.nan
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    pairs = examples.pairs
    products = (queries[pairs[:, 0]] * passages[pairs[:, 1]]).sum(1)
    np.testing.assert_allclose(of_positives, products, rtol=1e-4, atol=1e-5)


def test_a_vector_of_zeros_has_a_cosine_of_zero() -> None:
    snapshot, examples = problem(np.random.default_rng(0))
    snapshot.passages[5] = snapshot.queries[2] = 0
    view, rows = snapshot_view(snapshot, examples, topk=10), np.tile(np.arange(10), (12, 1))
    scores, _ = view.on_scale("cosine", rows, view.inner_products(rows), examples.positives_of(np.arange(12)))
    assert (scores[:, 5] == 0).all()
    assert (scores[2] == 0).all()
    assert np.isfinite(scores).all()


SAMPLERS = [
    "ance",
    "ance-tele,per_source=4",
    "ance,sources=look-ahead+random+momentum+run,weighting=softmax,scores=centred",
    "nv-retriever,percentage=0.9",
    "simans,a=0.1,scores=cosine,margin=0.05",
    "simans,scores=teacher,sources=index+run,teacher_max=3",
    "ance,scores=centred,weighting=margin-bins,bins=3,min_score=-4,rank_min=1,contents=true",
]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SAMPLERS), st.integers(0, 2**32 - 1), st.data())
def test_what_a_few_queries_get_is_what_a_whole_generation_with_the_same_vectors_gives_them(
    text: str, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    snapshot, examples = problem(random)
    pairs = np.stack(np.meshgrid(np.arange(12), np.arange(60), indexing="ij"), axis=-1).reshape(-1, 2)
    teacher = ScoredPairs.ordered(pairs[:, 0], pairs[:, 1], random.integers(-3, 5, len(pairs)).astype(np.float64))
    run = NegativeTable(random.integers(-1, 60, (12, 7)).astype(np.int32), np.zeros((12, 7), np.float32), "run", 0, 0)
    config = SamplerConfig.parse(text)
    contents = random.integers(0, 50, 60) if config.contents else None
    sampler = NegativeSampler(
        examples, seed=3, count=2, config=config, contents=contents, tables={"run": run}, teacher=teacher
    )
    previous = replace(run, candidates=random.integers(-1, 60, (12, 20)).astype(np.int32), scores=np.zeros((12, 20)))
    order = data.draw(st.permutations(range(12)))
    some = np.array(order[: data.draw(st.integers(1, 12))])
    stamp = {"topk": 9, "generation": 5, "step": 40}
    whole = refreshed_candidates(snapshot, examples, sampler, previous, **stamp)
    few = refreshed_candidates(snapshot, examples, sampler, previous, **stamp, queries=some)
    width = list_width(config, sampler.tables, topk=9, corpus=60)
    assert few.candidates.shape[1] <= whole.candidates.shape[1] <= width
    for name in ("candidates", "scores", "origins", "log_weights"):
        ours, theirs = getattr(few, name), getattr(whole, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            columns = ours.shape[1]
            np.testing.assert_array_equal(ours, theirs[some, :columns])
            past = theirs[some, columns:]
            assert ((past <= 0) | (past == -np.inf)).all(), "what the wider table has more is past every list's end"
    assert (few.source, few.sources, few.generation, few.step) == (whole.source, whole.sources, 5, 40)


def test_vectors_are_asked_for_before_they_are_read() -> None:
    snapshot, examples = problem(np.random.default_rng(0))
    view = snapshot_view(snapshot, examples, topk=5)
    asked: list[np.ndarray] = []
    watched = replace(view, freshen=lambda rows: asked.append(np.asarray(rows)), passages=view.passages.clone())
    sampler = NegativeSampler(examples, seed=0, count=1, config=SamplerConfig.parse("ance-tele,scores=cosine,margin=0"))
    united = view_candidates(watched, examples, sampler, None, topk=5, generation=1, step=1)
    seen = np.unique(np.concatenate([rows.ravel() for rows in asked]))
    assert set(united.candidates[united.candidates >= 0].tolist()) <= set(seen.tolist())
    assert set(examples.positive_rows.tolist()) <= set(seen.tolist())
    assert torch.equal(watched.passages, view.passages)
