"""The loss of a probe on new and old negatives, and judged candidates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from mined import mine
from training_runs import make_trainer

from ance_fast.training import AnceTrainer
from ance_fast.training.generations import Generation
from ance_fast.training.judgements import Judgements
from ance_fast.training.measures import compared, judged_candidates, probe_batches, ranked_depth
from ance_fast.training.negatives import NegativeTable, random_table
from ance_fast.training.refresh import Snapshot, take_snapshot
from ance_fast.training.refresher import RunParts
from ance_fast.training.rolling import RollingRefresh
from ance_fast.training.sampler_config import SamplerConfig


@pytest.fixture(scope="module", params=["pairwise", "contrastive"])
def trainer(
    tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AnceTrainer:
    output = tmp_path_factory.mktemp("run") / "out"
    return make_trainer(tiny_bert, wiki, output, loss=request.param, batch_size=16, negatives_per_query=2)


@pytest.fixture(scope="module")
def snapshot(trainer: AnceTrainer) -> Snapshot:
    return take_snapshot(trainer.encoder, trainer.examples, factory="Flat")


def parts_of(trainer: AnceTrainer) -> RunParts:
    return RunParts(
        trainer.ance, trainer.encoder, trainer.examples, trainer.sampler, trainer.dev, trainer.folder, steps=[4]
    )


def mined(trainer: AnceTrainer, snapshot: Snapshot) -> NegativeTable:
    return mine(snapshot, trainer.examples, topk=20, generation=3, step=7)


def test_the_probes_loss_is_the_runs_own_of_the_same_queries(trainer: AnceTrainer, snapshot: Snapshot) -> None:
    table = mined(trainer, snapshot)
    report = compared(parts_of(trainer), snapshot, random_table(trainer.examples), table, 7)
    batches = probe_batches(parts_of(trainer))
    assert [len(batch) for batch in batches] == [16] * 4
    assert len(np.unique(np.concatenate(batches))) == 64
    trainer.refresher.generation = Generation("", table)
    trainer.state.global_step = 7
    trainer.encoder.eval()
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.encoder, {"query": torch.from_numpy(batch)}) for batch in batches]
    assert report["loss_fresh"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_the_same_candidates_have_the_same_loss_whatever_their_generation(
    trainer: AnceTrainer, snapshot: Snapshot
) -> None:
    """So a difference is never one of the draw."""
    table = mined(trainer, snapshot)
    report = compared(parts_of(trainer), snapshot, dataclasses.replace(table, generation=2, step=1), table, 7)
    assert report["loss_fresh"] == report["loss_stale"]
    assert (report["overlap@10"], report["margin"]) == (1.0, report["stale_margin"])


def test_harder_negatives_have_a_higher_loss(trainer: AnceTrainer, snapshot: Snapshot) -> None:
    report = compared(parts_of(trainer), snapshot, random_table(trainer.examples), mined(trainer, snapshot), 7)
    assert report["loss_fresh"] > report["loss_stale"]


def test_a_probe_of_few_queries_is_one_batch_of_all(trainer: AnceTrainer) -> None:
    parts = parts_of(trainer)
    few = dataclasses.replace(parts, config=dataclasses.replace(parts.config, batch_size=10**6))
    assert [sorted(batch) for batch in probe_batches(few)] == [list(range(len(trainer.examples)))]


def test_judged_candidates_are_counted_over_the_whole_table(trainer: AnceTrainer, snapshot: Snapshot) -> None:
    """Every other passage is judged, every fourth is relevant, for all queries."""
    table, count = mined(trainer, snapshot), len(trainer.examples.passages)
    keys = np.arange(0, len(trainer.examples) * count, 2)
    judgements = Judgements(keys, keys % count % 4 == 0, count)
    parts = parts_of(trainer)
    judged = dataclasses.replace(parts, examples=dataclasses.replace(parts.examples, judgements=judgements))
    rows = table.candidates[table.candidates >= 0]
    assert judged_candidates(judged, table) == {
        "candidates_judged": pytest.approx((rows % 2 == 0).mean()),
        "false_candidate_rate": pytest.approx((rows % 4 == 0).mean()),
        "false_candidate_rate_judged": pytest.approx((rows[rows % 2 == 0] % 4 == 0).mean()),
    }
    assert judged_candidates(judged, random_table(trainer.examples)) == {}
    assert judged_candidates(parts, table) == {}


@pytest.mark.parametrize(
    ("sampler", "filtered", "depth"),
    [
        ("ance,count_positives=true", {"candidates": 9, "positive": 2, "content": 0}, 10),
        ("simans", {"candidates": 9}, 10),
        ("ance,rank_max=7,keep=6", {"candidates": 9, "window": 2, "beyond": 1}, 6),
        ("ance", {"candidates": 9, "document": 1}, 0),
        ("simans", {"candidates": 9, "margin": 1}, 0),
        ("ance,rank_min=2", {"candidates": 9, "window": 2}, 0),
        ("ance,sources=random", {}, 0),
    ],
)
def test_positives_are_ranked_only_against_lists_that_nothing_was_left_out_of(
    trainer: AnceTrainer, snapshot: Snapshot, sampler: str, filtered: dict[str, int], depth: int
) -> None:
    config = SamplerConfig.parse(sampler)
    table = dataclasses.replace(mined(trainer, snapshot), sources=config.sources, filtered=filtered)
    assert ranked_depth(config, 200, table) == depth
    assert ranked_depth(config, 4, table) == min(4, depth)


def begun_rolling(tiny_bert: Path, wiki: Path, output: Path, **settings: object) -> tuple[AnceTrainer, RollingRefresh]:
    """Rolling refresh after its first two steps."""
    rolling = {"refresh": "rolling", "first_refresh": 1, "rolling_slice": 50, **settings}
    trainer = make_trainer(tiny_bert, wiki, output, **rolling)
    trainer.run_folder.begin(trainer._identity())
    for step in range(3):
        trainer.refresher.before_step(step)
    assert isinstance(trainer.refresher, RollingRefresh)
    return trainer, trainer.refresher


@pytest.mark.parametrize("rerank", [None, 40])
def test_a_probe_of_rolling_refresh_changes_neither_lists_nor_matrix(
    tiny_bert: Path, wiki: Path, tmp_path: Path, rerank: int | None
) -> None:
    trainer, rolling = begun_rolling(tiny_bert, wiki, tmp_path / "out", rerank=rerank)
    assert rolling.state is not None
    rolling.interval()
    with torch.no_grad():
        for parameter in trainer.encoder.parameters():
            parameter *= 1.1
    state = rolling.state
    before = {name: array.copy() for name, array in state.lists().items()} | {"versions": state.versions.copy()}
    matrix = state.matrix.clone()
    report = rolling._probed(3)
    assert report["loss_fresh"] > report["loss_stale"]  # what was in use until now is BM25's
    for name, array in {**state.lists(), "versions": state.versions}.items():
        np.testing.assert_array_equal(array, before[name])
    torch.testing.assert_close(state.matrix, matrix, rtol=0, atol=0)
    assert "overlap@10" not in rolling.interval()


@pytest.mark.parametrize("sampler", ["ance", "simans,sources=index+random"])
def test_lists_mined_just_now_have_the_loss_of_a_probe_that_mines_them_again(
    tiny_bert: Path, wiki: Path, tmp_path: Path, sampler: str
) -> None:
    trainer, rolling = begun_rolling(tiny_bert, wiki, tmp_path / "out", sampler=sampler)
    rolling.table_for(np.concatenate(probe_batches(parts_of(trainer))), 2)
    report = rolling._probed(2)
    assert report["loss_fresh"] == report["loss_stale"]
