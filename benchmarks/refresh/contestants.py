"""Our contestants: one training run each, from texts to the last step."""

from __future__ import annotations

import json
import shutil

import torch

from ance_fast.training import AnceTrainer
from benchmarks.refresh.bench import Bench
from benchmarks.refresh.peer import train_by_loop
from benchmarks.refresh.recorder import Recorder, Trained
from benchmarks.refresh.settings import PEER, Plan, ance_config


class _Untested(AnceTrainer):
    """Ends with its last step: the index of the final encoder is no part of what is compared."""

    def _finish(self) -> None: ...


def train(bench: Bench, plan: Plan) -> Trained:
    """Run one contestant. The clock begins with the model loaded and nothing else done."""
    torch.set_num_threads(bench.settings.threads)
    if plan.mode == PEER:
        return train_by_loop(bench, plan.seed)
    folder = bench.folder / plan.name
    shutil.rmtree(folder, ignore_errors=True)
    encoder, dataset = bench.encoder(), bench.dataset("train")
    recorder = Recorder(encoder.backbone.model, bench.settings.measured_steps)
    recorder.start()
    trainer = _Untested(encoder, dataset, ance_config(bench.settings, plan, folder), callbacks=[recorder])
    trainer.train()
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    # Before the first refresh a worker has nothing to do.
    busy = [
        (entry["worker_busy"], entry["seconds_interval"])
        for entry in log
        if "worker_busy" in entry and entry["step"] > bench.settings.interval
    ]
    trained = recorder.trained
    trained.extra = {
        "seconds_refresh": trainer.refresher.seconds,
        "negative_age_max": max((entry.get("negative_age_max", 0) for entry in log), default=0),
        "refreshes": [entry for entry in log if "generation" in entry],
        **({"worker_busy": sum(b * s for b, s in busy) / sum(s for _, s in busy)} if busy else {}),
    }
    shutil.rmtree(folder)
    return trained
