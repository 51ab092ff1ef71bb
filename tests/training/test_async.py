"""Asynchronous refresh: what a run uses while a second process makes more, how old it gets, and what a death costs."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import entries, make_trainer

from ance_fast import Encoder
from ance_fast.crash_points import VARIABLE
from ance_fast.errors import ConfigError, WorkerError
from ance_fast.training import AnceTrainer
from ance_fast.training.async_refresh import AsyncRefresh, worker_place
from ance_fast.training.config import AnceConfig
from ance_fast.training.generations import Generation
from ance_fast.training.negatives import random_table
from ance_fast.training.new_generation import new_generation
from ance_fast.training.worker_link import MOST_DEATHS

pytestmark = pytest.mark.timeout(300)


class Warm:
    """A run's parts and a worker that several tests use one after the other: its start is what takes time."""

    def __init__(self, trainer: AnceTrainer) -> None:
        self.trainer = trainer
        self.folder = trainer.folder
        refresher = start(trainer)
        assert refresher._link is not None
        self.link = refresher._link
        assert refresher.generation is not None
        self.first = refresher.generation

    def refresher(self, **settings: Any) -> AsyncRefresh:
        """One with other settings, at its first generation."""
        parts = self.trainer.refresher._parts  # type: ignore[attr-defined]
        config = replace(parts.config, **settings)
        refresher = AsyncRefresh(replace(parts, config=config, steps=config.refresh_steps(10)))
        refresher.generation, refresher._link = self.first, self.link
        return refresher


@pytest.fixture(scope="module")
def worker(tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    trainer = make_trainer(tiny_bert, wiki, tmp_path_factory.mktemp("async") / "run", refresh="async")
    yield Warm(trainer)
    trainer.refresher.close()


@pytest.fixture
def warm(worker: Warm) -> Iterator[Warm]:
    yield worker
    while worker.link.asked is not None:
        worker.link.poll(1.0)


def start(trainer: AnceTrainer) -> AsyncRefresh:
    """The refresher of a run that has begun and has its first negatives."""
    trainer.run_folder.begin(trainer._identity())
    refresher = trainer.refresher
    assert isinstance(refresher, AsyncRefresh)
    refresher.before_step(0)
    return refresher


def until_made(refresher: AsyncRefresh, step: int) -> dict[str, float]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        report = refresher.before_step(step)
        if report is not None:
            return report
        time.sleep(0.02)
    raise AssertionError("nothing was made in two minutes")


def test_a_run_trains_while_its_worker_makes_generations_and_keeps_the_bound(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        tiny_bert, wiki, tmp_path / "run", refresh="async", max_steps=30, refresh_every=4, max_staleness=6
    )
    metrics = trainer.train()
    assert set(metrics) == {"nDCG@10", "RR@10", "R@100"}
    log, negatives = entries(tmp_path / "run"), entries(tmp_path / "run", "negatives.jsonl")
    assert [entry["step"] for entry in negatives] == list(range(30))
    assert max(entry.get("age_max", 0) for entry in negatives) <= 6
    swaps = [entry for entry in log if "generation" in entry]
    assert [entry["generation"] for entry in swaps] == list(range(1, len(swaps) + 1))
    assert len(swaps) >= 4
    assert all(entry["steps_behind"] <= 6 and entry["seconds_worker"] > 0 for entry in swaps)
    assert all("eval_nDCG@10" in entry for entry in swaps)
    intervals = [entry for entry in log if "worker_busy" in entry]
    assert all(0 <= entry["worker_busy"] <= 1 and entry["seconds_waited"] >= 0 for entry in intervals)
    assert (tmp_path / "run" / "best").is_dir()
    assert isinstance(trainer.refresher, AsyncRefresh)
    assert trainer.refresher._link is None
    assert not list((tmp_path / "run" / "generations").glob(".*"))


def test_a_generation_is_the_one_that_the_weights_handed_over_give(warm: Warm) -> None:
    encoder, refresher = warm.trainer.encoder, warm.refresher(first_refresh=4, refresh_every=100)
    learned = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    fingerprint = encoder.fingerprint()
    assert refresher.before_step(4) is None
    wanted = new_generation(refresher._parts, warm.first, 4)
    encoder.load_state_dict(learned)  # the worker has a copy
    report = until_made(refresher, 7)
    made = refresher.generation
    assert made is not None
    assert made.fingerprint == fingerprint != encoder.fingerprint()
    assert (made.number, made.step, report["steps_behind"]) == (1, 4, 3)
    np.testing.assert_array_equal(made.table.candidates, wanted.table.candidates)
    assert report["eval_nDCG@10"] == wanted.metrics["eval_nDCG@10"]
    assert refresher.ages(np.array([3, 5]), 9).tolist() == [5, 5]
    assert refresher.interval()["worker_busy"] > 0
    best = warm.trainer.dev.best
    assert best is not None
    assert Encoder.load(str(warm.folder / "best"), normalize=True).fingerprint() == fingerprint


def test_new_weights_wait_until_the_worker_is_free(warm: Warm) -> None:
    refresher = warm.refresher(first_refresh=2, refresh_every=2)
    refresher.before_step(2)
    assert warm.link.asked == 2
    refresher._is_due(warm.link, 5)
    refresher._due = True  # step 4 was due while the worker was busy
    report = until_made(refresher, 5)
    assert report["generation"] == 1
    assert warm.link.asked == 5, "the newest weights, as soon as it is free"
    until_made(refresher, 5)
    assert warm.link.asked is None, "what was due is done with"


def test_it_waits_rather_than_use_negatives_that_are_too_old(warm: Warm, caplog: pytest.LogCaptureFixture) -> None:
    refresher = warm.refresher(refresh_every=1000, max_staleness=3)
    aged = replace(warm.first, table=replace(warm.first.table, source="index"))
    aged.publish(warm.folder / "generations")
    refresher.generation = aged
    assert refresher.before_step(1) is None
    assert warm.link.asked is None
    refresher.before_step(2)
    assert refresher._link is not None
    assert warm.link.asked == 2 or refresher.generation.step == 2, "half of the bound has gone by"
    caplog.set_level(logging.INFO, logger="ance_fast")
    # A worker that cannot go on for a while, however fast it is.
    process = warm.link._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (process.pid, signal.SIGCONT)).start()
    for step in range(3, 9):
        refresher.before_step(step)
        assert step - refresher.generation.step <= 3
    assert "waited" in caplog.text
    assert refresher.seconds > 0


def test_negatives_that_do_not_age_give_way_before_what_replaces_them_is_too_old(warm: Warm) -> None:
    refresher = warm.refresher(first_refresh=1, refresh_every=1000, max_staleness=2)
    refresher.before_step(1)
    assert warm.link.asked == 1
    refresher.before_step(3)
    assert refresher.generation is not None
    assert refresher.generation.step == 1
    refresher.before_step(4)
    assert 4 - refresher.generation.step <= 2


def test_a_worker_that_dies_over_a_generation_is_replaced(
    tiny_bert: Path, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "worker.before")
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "run", refresh="async")
    refresher = start(trainer)
    try:
        refresher.before_step(4)
        assert refresher._link is not None
        while refresher._link._deaths == 0:
            refresher.before_step(4)
        report = until_made(refresher, 5)
    finally:
        refresher.close()
    assert "SIGKILL" in caplog.text
    assert "Starting it again" in caplog.text
    assert report["generation"] == 1
    for path in (tmp_path / "run" / "generations").iterdir():
        Generation.load(path)  # checks every file


def test_a_worker_that_keeps_dying_ends_the_run_with_its_reason(
    tiny_bert: Path, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher = start(make_trainer(tiny_bert, wiki, tmp_path / "run", refresh="async"))
    monkeypatch.setattr("sys.executable", "/bin/false")
    link = refresher._link
    assert link is not None
    os.kill(link._process.pid, signal.SIGKILL)
    killed = time.monotonic()
    try:
        with pytest.raises(WorkerError, match=f"{MOST_DEATHS} times in a row") as caught:
            until_made(refresher, 4)
    finally:
        refresher.close()
    assert time.monotonic() - killed < 20
    assert "worker.log" in str(caught.value)


def test_poisoned_weights_end_the_run_with_the_worker_s_message(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    refresher = start(make_trainer(tiny_bert, wiki, tmp_path / "run", refresh="async"))
    try:
        with torch.no_grad():
            next(refresher._parts.encoder.parameters()).fill_(float("nan"))
        with pytest.raises(WorkerError, match="NaN"):
            until_made(refresher, 4)
        assert refresher._link is not None
        assert refresher._link._process.wait(timeout=60) == 1
    finally:
        refresher.close()


def test_generations_of_lost_weights_are_dropped_on_resume(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "run", refresh="async")
    refresher, generations = trainer.refresher, tmp_path / "run" / "generations"
    assert isinstance(refresher, AsyncRefresh)
    table = random_table(trainer.examples)
    for number, step in enumerate((0, 2, 5, 6, 9)):
        Generation(f"{step}", replace(table, source="index", generation=number, step=step)).publish(generations)
    log = tmp_path / "run" / "metrics.jsonl"
    for told, untold in (
        ("", True),
        ('{"step": 3, "generation": 1.0}\n', True),
        ('{"step": 6, "generation": 2.0}\n', False),
    ):
        log.write_text(told, encoding="utf-8")
        refresher.resume(tmp_path, 6)
        assert sorted(int(path.name.split("-")[1]) for path in generations.iterdir()) == [0, 2, 5]
        assert refresher.generation is not None
        assert (refresher.generation.number, refresher.generation.fingerprint) == (2, "5")
        assert refresher._untold is untold


def test_a_generation_that_no_line_of_the_log_is_about_is_told_after_a_resume(warm: Warm) -> None:
    refresher = warm.refresher(first_refresh=50)
    refresher._untold = True
    report = refresher.before_step(3)
    assert report == {"generation": 0.0, "steps_behind": 3.0, **warm.first.metrics}
    assert refresher.before_step(4) is None


def test_training_gives_threads_to_the_worker_and_gets_them_back(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Link:
        asked = None

        def __init__(self, parts: object, *, device: str, threads: int) -> None:
            made.append(threads)

        def close(self) -> None: ...

    monkeypatch.setattr("ance_fast.training.async_refresh.WorkerLink", Link)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        refresher = warm.refresher(refresh_threads=3)
        refresher._link = None
        refresher._start()
        assert (made, torch.get_num_threads()) == ([3], 1)
        refresher.close()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_where_a_worker_works() -> None:
    threads = torch.get_num_threads()
    assert worker_place(AnceConfig("x"), torch.device("cpu")) == ("cpu", max(1, threads // 3))
    asked = AnceConfig("x", refresh="async", refresh_device="cuda:1", refresh_threads=5)
    assert worker_place(asked, torch.device("cuda", 0)) == ("cuda:1", 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh": "sync", "refresh_threads": 2}, "refresh_threads=2 is for refresh=async"),
        ({"refresh": "async", "refresh_threads": 0}, "refresh_threads=0: must be at least 1"),
        ({"refresh": "async", "rerank": 300}, "rerank=300 is for refresh=rolling"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnceConfig("x", **settings)


def test_a_link_is_one_generation_at_a_time(warm: Warm) -> None:
    previous = warm.first.path_in(warm.folder / "generations")
    warm.link.hand_over(1, previous)
    with pytest.raises(AssertionError):
        warm.link.hand_over(2, previous)
