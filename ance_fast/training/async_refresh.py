"""`refresh="async"`: a process of its own encodes, indexes and mines by weights it was handed, while training goes on.

The run hands over a copy of its weights when the schedule says so, or as soon afterwards as the worker is free, and
takes up the generation made of them between two steps after it is there. Negatives are then as old as making them took;
`max_staleness` bounds that: the run waits rather than draw from a generation that is older, and logs how long. What
depends on time differs between two runs, so their negatives do.
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ance_fast.crash_points import crash_point
from ance_fast.errors import ConfigError
from ance_fast.training.config import AnceConfig
from ance_fast.training.generations import Generation, drop_from, newest_before
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.refresher import RunParts
from ance_fast.training.run_folder import newest_told
from ance_fast.training.start import start_table
from ance_fast.training.worker_link import WorkerLink

logger = logging.getLogger(__name__)

# A wait is spoken of so often, and looks so often whether it is time.
SAY_SECONDS = 30.0
TICK_SECONDS = 1.0


class AsyncRefresh:
    """Where several processes train, the first has the worker and decides; it sends the others what it takes up."""

    def __init__(self, parts: RunParts) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("refresh='async' needs Linux: its weights travel in memory that only Linux can share so")
        self.generation: Generation | None = None
        self.seconds = 0.0
        self._parts = parts
        self._generations = parts.folder / "generations"
        self._link: WorkerLink | None = None
        self._asked_for = 0  # steps of the schedule that have been handed over, or are due
        self._due = False
        self._untold = False  # a generation was resumed with that no line of the log is about
        self._threads_before: int | None = None
        self._reported = _Clock(0.0, 0.0, time.monotonic())

    def before_step(self, step: int) -> dict[str, float] | None:
        """Take up what the worker has made, hand over what is due, and wait if the negatives would be too old."""
        parts, untold = self._parts, self._untold
        self._untold = False
        if self.generation is None:
            table = start_table(parts.config, parts.encoder, parts.examples, parts.sampler, parts.ranks)
            begun = Generation(parts.encoder.fingerprint(), table)
            parts.ranks.first(lambda: begun.publish(self._generations))
            self._take_up(begun)
        started, before = time.monotonic(), self.generation

        def decide() -> tuple[dict[str, float] | None, Generation | None]:
            report = self._decide(step)
            assert self.generation is not None
            return report, None if self.generation is before else self.generation

        report, generation = parts.ranks.first(decide)
        if generation is not None and not parts.ranks.leads:
            self._take_up(generation)
        self.seconds += time.monotonic() - started
        if untold and report is None:
            assert self.generation is not None
            report = self._told(self.generation, step)
        return report

    def table_for(self, queries: np.ndarray, step: int) -> NegativeTable:
        """The generation's table, whatever the queries."""
        assert self.generation is not None
        return self.generation.table

    def ages(self, passages: np.ndarray, step: int) -> np.ndarray:
        """The same for all: steps since the weights that made the generation."""
        assert self.generation is not None
        return self.generation.ages(passages, step)

    def interval(self) -> dict[str, float]:
        """The seconds that training waited for all of this, and the share of the time that the worker was busy."""
        if self._link is None:
            return {}
        now = _Clock(self.seconds, self._link.busy_seconds(), time.monotonic())
        before, self._reported = self._reported, now
        # What it did between its last word and this one is known only when it speaks again.
        busy = (now.busy - before.busy) / max(now.time - before.time, 1e-9)
        return {"seconds_waited": now.waited - before.waited, "worker_busy": min(1.0, max(0.0, busy))}

    def save(self, folder: Path, previous: Path | None) -> None:
        """Nothing: generations are published when they are made."""

    def resume(self, folder: Path, step: int) -> None:
        """Take up the newest generation whose weights the run still has; those of weights it has lost are removed."""
        self.generation = self._parts.ranks.first(lambda: self._newest(step))
        self._asked_for = bisect_right(self._parts.steps, self.generation.step)
        # Its line may have been written after the checkpoint, and so be lost, or never.
        self._untold = self.generation.number > newest_told(self._parts.folder / "metrics.jsonl")

    def close(self) -> None:
        """End the worker."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    def _decide(self, step: int) -> dict[str, float] | None:
        link = self._link or self._start()
        report = self._receive(link, step, 0.0)
        self._due |= self._is_due(link, step)
        if self._due and link.asked is None:
            self._hand_over(link, step)
        if self._too_old(link, step):
            report = self._wait(link, step) or report
        return report

    def _newest(self, step: int) -> Generation:
        drop_from(self._generations, max(step, 1))
        return newest_before(self._generations, step)

    @property
    def _bound(self) -> float:
        bound = self._parts.config.max_staleness
        return float("inf") if bound is None else bound

    def _too_old(self, link: WorkerLink, step: int) -> bool:
        """Whether `step` may not draw from the generation in use."""
        assert self.generation is not None
        if self.generation.table.ages:
            return step - self.generation.step > self._bound
        # These do not age. What replaces them does while it is made, and is to be used for a step at least.
        return link.asked is not None and step - link.asked >= self._bound

    def _is_due(self, link: WorkerLink, step: int) -> bool:
        """Whether the schedule has a step that was not asked for, or the newest weights that were handed over have half
        of the age that negatives may reach."""
        assert self.generation is not None
        passed = bisect_right(self._parts.steps, step)
        due = passed > self._asked_for
        self._asked_for = passed
        if link.asked is not None:
            return due or step - link.asked > self._bound / 2
        ages = self.generation.table.ages
        return due or (ages and step - self.generation.step > self._bound / 2)

    def _start(self) -> WorkerLink:
        self._reported = _Clock(self.seconds, 0.0, time.monotonic())
        device, threads = worker_place(self._parts.config, self._parts.encoder.device)
        if self._parts.encoder.device.type == "cpu" and device == "cpu":
            # Two pools of threads on the same cores would wait for each other at every barrier.
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(max(1, self._threads_before - threads))
        self._link = WorkerLink(self._parts, device=device, threads=threads)
        return self._link

    def _hand_over(self, link: WorkerLink, step: int) -> None:
        assert self.generation is not None
        link.hand_over(step, self.generation.path_in(self._generations))
        self._due = False

    def _receive(self, link: WorkerLink, step: int, timeout: float) -> dict[str, float] | None:
        asked = link.asked
        made = link.poll(timeout)
        if asked is not None and link.asked is None and made is None:
            self._due = True  # the worker died over it
        if made is None:
            return None
        generation = Generation.load(made.path, mapped=True)
        self._take_up(generation)
        self._parts.dev.resume()  # the worker keeps the best encoder
        return {"seconds_worker": made.ended - made.started, **self._told(generation, step)}

    def _told(self, generation: Generation, step: int) -> dict[str, float]:
        return {
            "generation": float(generation.number),
            "steps_behind": float(step - generation.step),
            **generation.metrics,
        }

    def _wait(self, link: WorkerLink, step: int) -> dict[str, float] | None:
        started = said = time.monotonic()
        report = None
        while self._too_old(link, step):
            if link.asked is None:
                self._hand_over(link, step)
            report = self._receive(link, step, TICK_SECONDS) or report
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                logger.info("step %d: waiting for the refresh worker since %.0f s", step, said - started)
        seconds = time.monotonic() - started
        logger.info("step %d: waited %.1f s for negatives not older than %d steps", step, seconds, int(self._bound))
        return report

    def _take_up(self, generation: Generation) -> None:
        self.generation = generation
        crash_point("generation.swapped")


@dataclass(frozen=True)
class _Clock:
    """Readings that `interval` subtracts, in seconds."""

    waited: float
    busy: float
    time: float


def worker_place(config: AnceConfig, training: torch.device) -> tuple[str, int]:
    """The device and the number of CPU threads of the worker of a run that trains on `training`.

    By default a GPU that no rank of this host trains on, if there is one, else that of the run; on a CPU a third of the
    run's threads, at least one.
    """
    device = config.refresh_device or _free_device(training)
    return device, config.refresh_threads or max(1, torch.get_num_threads() // 3)


def _free_device(training: torch.device) -> str:
    if training.type != "cuda":
        return str(training)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return f"cuda:{ranks}" if torch.cuda.device_count() > ranks else str(training)
