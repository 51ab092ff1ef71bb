"""Where the time of a pipeline goes: seconds of work a stage, gathered from the threads that do it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ance_fast.progress import Advance, plain_number

# In the order data flows. "wait" stages are time a thread stood still for another one.
STAGES = ("tokenise", "pack", "H2D", "forward", "pool", "D2H", "write", "add", "search")


class StageTimes:
    """Seconds of work by stage. Stages overlap, so their sum may exceed `wall`; the one that is busiest limits.

    `lanes` says how many threads work at a stage at the same time, 1 where it says nothing.

    Threads may add at once. On CUDA the stages of the device are measured by events, without waiting for them: H2D,
    forward and pool by `on`, D2H by the ring that makes these copies.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lanes: dict[str, int] = {}
        self.wall = 0.0
        self.passages = 0
        self.tokens = 0
        self._lock = threading.Lock()
        self._running = 0
        self._started = 0.0
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def host(self, stage: str) -> Iterator[None]:
        """Count the block's wall time under `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    @contextmanager
    def on(self, device: torch.device, stage: str) -> Iterator[None]:
        """Count what the block asks `device` to do: between two events of its current stream, or the wall time."""
        if device.type != "cuda":
            with self.host(stage):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(device)
        begin.record(stream)
        try:
            yield
        finally:
            end.record(stream)
            with self._lock:
                self._pending.append((stage, begin, end))
            self._collect()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The whole of the work: its wall time, and at its end the last events of the device.

        Blocks may lie within each other or overlap between threads: the time counts once.
        """
        with self._lock:
            if self._running == 0:
                self._started = time.perf_counter()
            self._running += 1
        try:
            yield
        finally:
            for _, _, end in list(self._pending):
                end.synchronize()
            self._collect()
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self.wall += time.perf_counter() - self._started

    def count(self, passages: int, tokens: int) -> None:
        with self._lock:
            self.passages += passages
            self.tokens += tokens

    @property
    def limiting(self) -> str | None:
        """The stage that is busy the largest share of the time; None before anything was measured."""
        return max(self.seconds, key=lambda stage: self.seconds[stage] / self.lanes.get(stage, 1), default=None)

    def table(self) -> list[dict[str, Any]]:
        """Every stage in the order data flows: {"stage", "threads", "seconds", "share"}.

        seconds: of work, all threads of the stage together. share: of the time that each of them was busy, so
        `seconds / threads / wall`.
        """
        known = [*STAGES, *sorted(self.seconds.keys() - set(STAGES))]
        return [
            {
                "stage": stage,
                "threads": self.lanes.get(stage, 1),
                "seconds": self.seconds[stage],
                "share": self.seconds[stage] / max(self.wall, 1e-9) / self.lanes.get(stage, 1),
            }
            for stage in known
            if stage in self.seconds
        ]

    def summary(self) -> dict[str, Any]:
        """What `--json` prints: rates, padding (there is none: batches are packed), and `table()` as "stages".

        seconds: wall time. Rates are None where there was nothing to do.
        """
        wall = max(self.wall, 1e-9)
        return {
            "seconds": self.wall,
            "passages": self.passages,
            "tokens": self.tokens,
            "passages_per_s": self.passages / wall if self.passages else None,
            "tokens_per_s": self.tokens / wall if self.passages else None,
            "padding": 0.0,
            "stages": self.table(),
            "limiting_stage": self.limiting,
        }

    def _collect(self) -> None:
        with self._lock:
            waiting = []
            for stage, begin, end in self._pending:
                if end.query():
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + begin.elapsed_time(end) / 1000
                else:
                    waiting.append((stage, begin, end))
            self._pending = waiting


def batches_on(advance: Advance) -> Callable[[int, int], None]:
    """An `on_batch` for the pipeline that moves a progress bar and shows tokens/s beside passages/s."""
    started = time.perf_counter()
    done = 0
    lock = threading.Lock()

    def on_batch(passages: int, tokens: int) -> None:
        nonlocal done
        with lock:
            done += tokens
            rate = done / max(time.perf_counter() - started, 1e-9)
            advance(passages, f"{plain_number(rate)} tokens/s, padding 0 %")

    return on_batch
