"""Synchronous refresh: when it is due, when it is skipped, and the bound on age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mined import mine
from training_runs import entries, make_trainer

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.training import AnceTrainer
from ance_fast.training.generations import Generation, newest_before
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.refresh import take_snapshot
from ance_fast.training.staleness import overlap
from ance_fast.training.sync import probed_overlap


@pytest.fixture(scope="module")
def trainer(tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> AnceTrainer:
    return make_trainer(tiny_bert, wiki, tmp_path_factory.mktemp("run") / "out")


def mined(trainer: AnceTrainer) -> NegativeTable:
    snapshot = take_snapshot(trainer.encoder, trainer.examples, factory="Flat")
    return mine(snapshot, trainer.examples, topk=20, generation=1, step=1)


def change_weights(trainer: AnceTrainer, size: float) -> None:
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.encoder.parameters():
            parameter += size * torch.randn(parameter.shape, generator=noise)


def test_a_probe_of_unchanged_weights_finds_everything_kept(trainer: AnceTrainer) -> None:
    table = mined(trainer)
    assert probed_overlap(trainer.encoder, trainer.examples, table, seed=0) == 1.0


@pytest.mark.parametrize("size", [0.005, 0.02, 0.1])
def test_a_probe_never_finds_less_kept_than_a_whole_refresh_would(trainer: AnceTrainer, size: float) -> None:
    before = mined(trainer)
    change_weights(trainer, size)
    found = probed_overlap(trainer.encoder, trainer.examples, before, seed=0, queries=40)
    sample = np.random.default_rng(0).permutation(len(trainer.examples))[:40]
    kept = overlap(before.candidates[sample], mined(trainer).candidates[sample]).mean()
    assert kept <= found < 1


def test_a_refresh_that_would_change_little_is_skipped_but_not_beyond_the_bound(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    slow = {"learning_rate": 1e-9, "refresh_overlap": 0.9, "max_steps": 20}
    free = make_trainer(tiny_bert, wiki, tmp_path / "free", **slow)
    free.train()
    log = [entry for entry in entries(free.folder) if "probe_overlap" in entry or "generation" in entry]
    assert [(entry["step"], "generation" in entry) for entry in log] == [
        (4, True),
        (8, False),
        (12, False),
        (16, False),
    ]
    assert all(entry["probe_overlap"] > 0.9 for entry in log[1:])
    bound = make_trainer(tiny_bert, wiki, tmp_path / "bound", **slow, max_staleness=8)
    bound.train()
    log = [entry for entry in entries(bound.folder) if "generation" in entry]
    assert [entry["step"] for entry in log] == [4, 12]
    assert max(entry.get("negative_age_max", 0) for entry in entries(bound.folder)) <= 8


def test_a_probe_that_finds_much_changed_refreshes(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    moving = make_trainer(tiny_bert, wiki, tmp_path / "out", learning_rate=1e-2, refresh_overlap=1.0)
    moving.train()
    assert [entry["step"] for entry in entries(moving.folder) if "generation" in entry] == [4, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_staleness": 2},
            "at step 4 and 8 negatives reach an age of 3; refresh every 3 steps",
        ),
        (
            {"max_staleness": 3, "max_refreshes": 1},
            "at step 4 and 12 negatives reach an age of 7",
        ),
        ({"max_staleness": 3, "start": "index", "first_refresh": 8}, "at step 0 and 8 negatives reach an age of 7"),
    ],
)
def test_a_schedule_that_breaks_the_bound_is_refused(
    tiny_bert: Path, wiki: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(tiny_bert, wiki, tmp_path / "out", **settings)


def test_a_schedule_that_keeps_the_bound_is_accepted(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    make_trainer(tiny_bert, wiki, tmp_path / "out", max_staleness=3, start="index")


def test_a_generation_is_read_back_as_it_was_published(tmp_path: Path) -> None:
    candidates, scores = np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((2, 3), dtype=np.float32)
    versions = np.array([3, -1], dtype=np.int32)
    for number, step in ((0, 0), (1, 4), (2, 8)):
        table = NegativeTable(candidates + step, scores, "index", number, step, {"margin": 0.5}, versions=versions)
        Generation(f"weights {step}", table).publish(tmp_path)
    found = newest_before(tmp_path, 8)
    assert (found.number, found.step, found.fingerprint, found.metrics) == (1, 4, "weights 4", {"margin": 0.5})
    np.testing.assert_array_equal(found.table.candidates, candidates + 4)
    assert found.table.versions is not None
    np.testing.assert_array_equal(found.table.versions, versions)
    assert newest_before(tmp_path, 0).step == 0
    with pytest.raises(ArtifactError, match="the negatives used before step 3 are missing"):
        newest_before(tmp_path / "nothing", 3)
