"""Rolling refresh: the matrix, its versions, the lists, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import entries, make_trainer

from ance_fast import Index
from ance_fast.errors import ConfigError, DataError
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.candidate_sources import refreshed_candidates
from ance_fast.training.generations import Generation
from ance_fast.training.refresh import Snapshot
from ance_fast.training.rolling import RollingRefresh, slice_for

ROLLING: dict[str, Any] = {"refresh": "rolling", "first_refresh": 2, "refresh_every": 4, "rolling_slice": 50}


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> AnceTrainer:
    trainer = make_trainer(tiny_bert, wiki, tmp_path_factory.mktemp("run") / "out", **ROLLING, max_steps=14)
    trainer.train()
    return trainer


def rolling_of(trainer: AnceTrainer) -> RollingRefresh:
    assert isinstance(trainer.refresher, RollingRefresh)
    return trainer.refresher


def begun(tiny_bert: Path, wiki: Path, output: Path, steps: int, **settings: Any) -> tuple[AnceTrainer, RollingRefresh]:
    """A trainer whose refresher has seen the first steps, from 0, with weights that change in between."""
    trainer = make_trainer(tiny_bert, wiki, output, **{**ROLLING, **settings})
    trainer.run_folder.begin(trainer._identity())
    for step in range(steps):
        change_weights(trainer, step)
        trainer.refresher.before_step(step)
    return trainer, rolling_of(trainer)


def change_weights(trainer: AnceTrainer, step: int) -> None:
    noise = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in trainer.encoder.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=noise)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
def test_every_vector_is_at_most_passages_over_slice_steps_old(passages: int, slice_rows: int, first: int) -> None:
    """The slices of successive steps, whatever divides what."""
    refresher = object.__new__(RollingRefresh)
    refresher._parts = SimpleNamespace(examples=SimpleNamespace(passages=range(passages)))  # type: ignore[assignment]
    refresher._first, refresher.slice_rows = first, min(slice_rows, passages)
    versions = np.full(passages, first)
    bound = -(-passages // slice_rows) - 1
    for step in range(first + 1, first + 3 * bound + 5):
        stalest = np.sort(versions)[: refresher.slice_rows]
        rows = np.concatenate([np.arange(*span) for span in refresher.spans_at(step)])
        assert len(np.unique(rows)) == len(rows) == refresher.slice_rows
        np.testing.assert_array_equal(np.sort(versions[rows]), stalest)
        versions[rows] = step
        assert step - versions.min() <= bound


@pytest.mark.parametrize(("passages", "bound"), [(400, 0), (400, 7), (401, 7), (399, 7), (10, 500)])
def test_a_bound_on_staleness_gives_the_smallest_slice_that_keeps_it(passages: int, bound: int) -> None:
    config = AnceConfig(output_dir="x", refresh="rolling", max_staleness=bound)
    rows = slice_for(config, passages)
    assert -(-passages // rows) - 1 <= bound
    assert rows == 1 or -(-passages // (rows - 1)) - 1 > bound
    assert slice_for(dataclasses.replace(config, rolling_slice=rows), passages) == rows
    if rows > 1:
        with pytest.raises(ConfigError, match=f"the bound takes a slice of {rows}"):
            slice_for(dataclasses.replace(config, rolling_slice=rows - 1), passages)


def test_without_a_bound_a_slice_is_what_a_step_trains_on() -> None:
    config = AnceConfig(
        output_dir="x", refresh="rolling", batch_size=8, gradient_accumulation_steps=2, negatives_per_query=3
    )
    assert slice_for(config, 10_000) == 8 * 2 * (1 + 3)
    assert slice_for(config, 20) == 20


def test_rows_hold_what_the_weights_of_their_version_made_of_the_passages(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=2, rolling_slice=90)
    expected, versions = np.zeros((400, 32), np.float32), np.zeros(400, np.int64)
    for step in range(2, 9):
        change_weights(trainer, step)
        now = trainer.encoder.encode_tokens(trainer.examples.passages).numpy()
        rows = np.arange(400) if step == 2 else np.arange((step - 3) * 90, (step - 2) * 90) % 400
        expected[rows], versions[rows] = now[rows], step
        trainer.refresher.before_step(step)
        assert rolling.state is not None
        np.testing.assert_allclose(rolling.state.matrix.numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(rolling.state.versions, versions)
        np.testing.assert_array_equal(trainer.refresher.ages(np.arange(400), step), step - versions)


def test_lists_are_the_nearest_rows_of_the_matrix_to_queries_of_the_current_weights(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=5)
    queries = np.array([7, 3, 30])
    table = trainer.refresher.table_for(queries, 4)
    assert rolling.state is not None
    vectors = trainer.encoder.encode_tokens(trainer.examples.queries, queries).double()
    scores = (vectors @ rolling.state.matrix.double().T).numpy()
    for i, query in enumerate(queries):
        scores[i, trainer.examples.positives_of(np.array([query]))[1]] = -np.inf
    np.testing.assert_allclose(
        np.take_along_axis(scores, table.candidates[queries].astype(np.int64), 1),
        -np.sort(-scores, axis=1)[:, :20],
        atol=1e-5,
    )
    assert table.versions is not None
    assert table.versions[queries].tolist() == [4, 4, 4]
    assert (np.delete(table.versions, queries) == -1).all()


SAMPLERS = [
    "ance-tele,per_source=6,contents=true",
    "ance,sources=index+look-ahead+momentum+random+bm25,weighting=softmax,scores=centred,min_score=-40",
    "nv-retriever,percentage=0.9",
    "simans,a=0.1,scores=cosine",
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_has_the_negatives_that_a_whole_generation_by_the_same_vectors_would_give_it(
    tiny_bert: Path, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=4, sampler=sampler)
    random, state = np.random.default_rng(0), rolling.state
    assert state is not None
    # Whole numbers: their products come out the same whatever is multiplied with them.
    with state.changed(slice(None)):
        state.matrix.copy_(torch.from_numpy(random.integers(-3, 5, state.matrix.shape).astype(np.float32)))
    count = len(trainer.examples)
    vectors = torch.from_numpy(random.integers(-3, 5, (count, 32)).astype(np.float32))
    monkeypatch.setattr(trainer.encoder, "encode_tokens", lambda store, rows, **_: vectors[torch.from_numpy(rows)])
    for step, queries in ((4, np.array([9, 2, 30, 11])), (5, np.array([2, 40, 9]))):
        assert trainer.table is not None
        before = dataclasses.replace(trainer.table, candidates=trainer.table.candidates.copy())
        snapshot = Snapshot(state.matrix.numpy(), vectors.numpy(), Index.build(state.matrix.numpy()))
        whole = refreshed_candidates(
            snapshot, trainer.examples, trainer.sampler, before, topk=20, generation=step, step=step
        )
        now = trainer.refresher.table_for(queries, step)
        width = whole.candidates.shape[1]
        assert width <= now.candidates.shape[1]
        np.testing.assert_array_equal(now.candidates[queries, :width], whole.candidates[queries])
        np.testing.assert_array_equal(now.scores[queries, :width], whole.scores[queries])
        assert (now.candidates[queries, width:] == -1).all()
        numbered = dataclasses.replace(whole, generation=now.generation)
        np.testing.assert_array_equal(
            trainer.sampler(now, queries, step), trainer.sampler(numbered, queries, step), "the draw"
        )
        assert now.source == "+".join(trainer.sampler.config.sources) == whole.source
    others = np.setdiff1d(np.arange(count), [9, 2, 30, 11, 40])
    np.testing.assert_array_equal(now.candidates[others], before.candidates[others])


def test_before_its_first_list_a_querys_momentum_is_that_of_the_start(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer, _ = begun(tiny_bert, wiki, tmp_path / "out", steps=4, sampler="ance,sources=momentum", start="bm25")
    start = Generation.load(tmp_path / "out" / "generations" / "step-00000000-bm25").table
    table = trainer.refresher.table_for(np.array([3]), 3)
    np.testing.assert_array_equal(table.candidates[3, : start.candidates.shape[1]], start.candidates[3])
    assert table.versions is not None
    assert table.versions[3] == 3


@pytest.mark.parametrize("sampler", ["ance", SAMPLERS[1]])
def test_a_state_that_was_saved_and_taken_up_gives_the_same_lists(
    tiny_bert: Path, wiki: Path, tmp_path: Path, sampler: str
) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=5, sampler=sampler)
    rolling.table_for(np.array([1, 2, 3]), 4)
    rolling.save(tmp_path / "resident", None)
    again = make_trainer(tiny_bert, wiki, tmp_path / "out", **ROLLING, sampler=sampler)
    again.encoder.load_state_dict(trainer.encoder.state_dict())
    resumed = rolling_of(again)
    resumed.resume(tmp_path / "resident", 5)
    for one in (rolling, resumed):
        one.before_step(5)
    ours, theirs = (one.table_for(np.array([2, 5]), 5) for one in (rolling, resumed))
    for name in ("candidates", "scores", "log_weights", "origins", "versions"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_every_sources_candidates_are_encoded_anew_when_they_are_ranked_anew(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer, _ = begun(tiny_bert, wiki, tmp_path / "out", steps=6, rerank=30, sampler=SAMPLERS[1])
    queries = np.array([1, 2])
    found = trainer.refresher.table_for(queries, 5).candidates[queries]
    known = trainer.examples.positives_of(queries)[1]
    assert (trainer.refresher.ages(np.concatenate([found[found >= 0], known]), 5) == 0).all()


def test_what_filters_took_is_reported(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer, _ = begun(tiny_bert, wiki, tmp_path / "out", steps=4, sampler="nv-retriever,percentage=0.5,keep=none")
    found = trainer.refresher.table_for(np.arange(8), 3).candidates[:8]
    report = trainer.refresher.interval()
    assert report["filtered_percentage"] == pytest.approx(1 - (found >= 0).sum() / (8 * 20))
    assert report["filtered_percentage"] > 0
    assert "filtered_percentage" not in trainer.refresher.interval()


def test_reranked_candidates_are_ordered_by_the_current_weights_alone(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=6, rerank=60)
    queries = np.array([1, 2])
    assert rolling.state is not None
    stale = rolling.state.matrix.double().clone()
    table = trainer.refresher.table_for(queries, 5)
    q = trainer.encoder.encode_tokens(trainer.examples.queries, queries).double()
    fresh = (q @ trainer.encoder.encode_tokens(trainer.examples.passages).double().T).numpy()
    retrieved = (q @ stale.T).numpy()
    for i, query in enumerate(queries):
        retrieved[i, trainer.examples.positives_of(np.array([query]))[1]] = -np.inf
        pool = np.argsort(-retrieved[i])[:60]
        best = pool[np.argsort(-fresh[i, pool])][:20]
        np.testing.assert_allclose(fresh[i, table.candidates[query]], fresh[i, best], atol=1e-5)
    assert (trainer.refresher.ages(table.candidates[queries].ravel(), 5) == 0).all()


def test_hot_passages_are_the_stalest_of_recent_lists(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=5, rolling_hot=6)
    table = trainer.refresher.table_for(np.array([0, 1]), 4)
    assert rolling.state is not None
    before = rolling.state.versions.copy()
    trainer.refresher.before_step(5)
    changed = np.flatnonzero(rolling.state.versions != before)
    ((start, stop),) = rolling.spans_at(5)
    hot = np.setdiff1d(changed, np.arange(start, stop))
    seen = np.setdiff1d(table.candidates[[0, 1]].ravel(), np.arange(start, stop))
    assert len(hot) == 6
    assert set(hot) <= set(seen.tolist())
    assert before[hot].max() <= np.sort(before[seen])[5]


def test_ages_stay_within_the_bound_and_are_logged(finished: AnceTrainer) -> None:
    log = [entry for entry in entries(finished.folder) if "loss" in entry and entry["step"] > 2]
    assert all(0 <= entry["negative_age"] <= entry["negative_age_max"] <= 400 / 50 - 1 for entry in log)
    assert max(entry["negative_age_max"] for entry in log) > 0
    assert all({"margin", "harder_than_positive", "seconds_refresh"} <= entry.keys() for entry in log)
    batches = entries(finished.folder, "negatives.jsonl")
    assert [entry["step"] for entry in batches] == list(range(14))
    assert [entry["step"] for entry in batches if "age_max" not in entry] == [0, 1], "BM25 negatives have no age"


def test_generations_are_published_and_measured_on_schedule(finished: AnceTrainer) -> None:
    made = [Generation.load(path) for path in sorted((finished.folder / "generations").iterdir())]
    assert [(g.number, g.step, g.table.source) for g in made] == [
        (0, 0, "bm25"),
        (1, 2, "index"),
        (2, 6, "index"),
        (3, 10, "index"),
    ]
    assert made[-1].table.versions is not None
    assert 0 < (made[-1].table.versions >= 0).sum() <= 10 * 8
    measured = [entry["step"] for entry in entries(finished.folder) if "generation" in entry]
    assert measured == [2, 6, 10]


def test_a_list_mined_again_is_compared_with_the_one_before(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer, _ = begun(tiny_bert, wiki, tmp_path / "out", steps=5)
    queries = np.arange(12)
    first = trainer.refresher.table_for(queries, 4).candidates[queries].copy()
    assert "overlap@10" not in trainer.refresher.interval()
    change_weights(trainer, 99)
    trainer.refresher.before_step(5)
    second = trainer.refresher.table_for(queries, 5).candidates[queries]
    expected = np.mean([len(set(a[:10]) & set(b[:10])) / 10 for a, b in zip(first, second, strict=True)])
    assert expected < 1
    assert trainer.refresher.interval()["overlap@10"] == pytest.approx(expected)


def test_what_rolling_cannot_do_is_refused_at_the_start(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'HNSW32' would have to be built again, only exact search"):
        make_trainer(tiny_bert, wiki, tmp_path / "a", refresh="rolling", index_factory="HNSW32")
    with pytest.raises(ConfigError, match="the bound takes a slice of 67"):
        make_trainer(tiny_bert, wiki, tmp_path / "b", refresh="rolling", max_staleness=5, rolling_slice=66)
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "c", **ROLLING)
    several = dataclasses.replace(rolling_of(trainer)._parts, world_size=2)
    with pytest.raises(ConfigError, match="runs in one process, here are 2"):
        RollingRefresh(several)


def test_vectors_that_are_not_finite_end_the_run(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer, rolling = begun(tiny_bert, wiki, tmp_path / "out", steps=3)
    with torch.no_grad():
        next(trainer.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or infinity"):
        rolling.before_step(3)
    with pytest.raises(DataError, match="NaN or infinity"):
        rolling._encode_rows(np.array([5]), 3)
