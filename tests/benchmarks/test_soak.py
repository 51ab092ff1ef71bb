"""The soak notices what it is there to notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ance_fast import Encoder, Index
from ance_fast.training.config import REFRESH
from ance_fast.training.generations import Generation
from ance_fast.training.negatives import NegativeTable
from benchmarks import soak, soak_lives, soak_train

SETTINGS: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 2, "max_staleness": 1}
BATCHES = [{"step": 0}, {"step": 0}, *({"step": step, "age_max": step - 1} for step in (1, 1, 2, 2))]


@pytest.fixture(scope="module")
def encoder(tiny: Callable[..., Path]) -> Encoder:
    return Encoder.load(str(tiny("Bert", num_hidden_layers=1)), device="cpu")


@pytest.fixture
def run(encoder: Encoder, tmp_path: Path) -> Path:
    """The folder of a run that ended as it should."""
    folder = tmp_path / "run-01"
    fingerprint = encoder.fingerprint()
    candidates, scores = np.zeros((2, 3), dtype=np.int32), np.ones((2, 3), dtype=np.float32)
    for step in (0, 1):
        table = NegativeTable(candidates + step, scores, "index", step, step, {"seconds_refresh": 1.5})
        Generation(fingerprint, table).publish(folder / "generations")
    encoder.save(folder / "final")
    Index.build(np.eye(32, dtype=np.float32), fingerprint=fingerprint).save(folder / "index")
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    log(folder / "negatives.jsonl", BATCHES)
    log(folder / "metrics.jsonl", [{"step": 2, "loss": 0.5, "seconds_refresh": 1.5}])
    return folder


def log(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_every_way_to_refresh_has_a_part() -> None:
    assert set(soak.PARTS) == {"encode"} | (set(REFRESH) - {"none"})
    assert set(soak_train.MODES) >= set(soak.PARTS) - {"encode"}


def test_a_run_that_ended_as_it_should_has_no_fault(run: Path) -> None:
    assert soak_train.broken(run, SETTINGS) == []


def test_each_fault_of_a_run_is_named(run: Path) -> None:
    log(run / "negatives.jsonl", BATCHES[:-1])
    assert soak_train.broken(run, SETTINGS) == ["5 batches in the log, not 6 in order"]
    log(run / "negatives.jsonl", BATCHES)
    assert soak_train.broken(run, {**SETTINGS, "max_staleness": 0}) == ["a negative was 1 steps old"]
    (run / "generations" / ".step-00000001-index.0123abcd.tmp").mkdir()
    assert soak_train.broken(run, SETTINGS) == ["left behind: generations/.step-00000001-index.0123abcd.tmp"]
    (run / "generations" / ".step-00000001-index.0123abcd.tmp").rmdir()
    candidates = next((run / "generations" / "step-00000001-index").rglob("*candidates*"))
    candidates.write_bytes(candidates.read_bytes()[:-1])
    (fault,) = soak_train.broken(run, SETTINGS)
    assert "step-00000001-index" in fault


def test_an_outcome_is_what_a_run_made_whatever_time_that_took(run: Path) -> None:
    before = soak_train.outcome(run)
    assert {"final/model.safetensors", "generations/step-00000001-index", "metrics.jsonl"} <= before.keys()
    log(run / "metrics.jsonl", [{"step": 2, "loss": 0.5, "seconds_refresh": 9.0}])
    assert soak_train.outcome(run) == before
    log(run / "negatives.jsonl", [*BATCHES[:-1], {"step": 2, "age_max": 0}])
    after = soak_train.outcome(run)
    assert {name for name in before if before[name] != after[name]} == {"negatives.jsonl"}


def test_a_process_that_outlives_its_run_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_lives, "PATIENCE", 0.1)
    run = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    assert soak_lives.session(run.pid) == sorted([run.pid, worker])
    run.kill()
    run.wait()
    assert soak_lives.outlived(run.pid) == [worker]
    os.kill(worker, signal.SIGKILL)
    assert soak_lives.outlived(run.pid) == []


def test_the_step_a_run_has_come_to_is_that_of_its_last_whole_line(tmp_path: Path) -> None:
    assert soak_lives.step_of(tmp_path) == -1
    log(tmp_path / "negatives.jsonl", [{"step": 3}, {"step": 4}])
    assert soak_lives.step_of(tmp_path) == 4
