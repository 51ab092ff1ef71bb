"""What `refresh="rolling"` adds to a step, beside the cost of encoding its slice alone.

One run, one process: steps that encode their slice and mine their batch take turns with steps that draw from the lists
as they are, and after each two the slice is encoded once more, by itself. What is compared lies within a second of each
other.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ance_fast.data import TokenStore
from ance_fast.encoding import encode_spans
from ance_fast.encoding.budget import default_budget
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.refresher import Refresher
from ance_fast.training.rolling import RollingRefresh
from benchmarks.refresh.bench import Bench
from benchmarks.refresh.settings import SCALE

# Steps before anything is recorded; the second of them encodes the whole corpus.
WARM_UP = 4


class TakingTurns:
    """A rolling refresher that does nothing in every other step; which of two comes first changes each time."""

    def __init__(self, inner: RollingRefresh) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def before_step(self, step: int) -> dict[str, float] | None:
        # The first negatives come before the first step, whoever's turn it is.
        return self.inner.before_step(step) if refreshes(step) or self.inner.generation is None else None

    def table_for(self, queries: np.ndarray, step: int) -> NegativeTable:
        if refreshes(step):
            return self.inner.table_for(queries, step)
        assert self.inner.generation is not None
        return self.inner.generation.table


class Stopwatch(TrainerCallback):
    """Seconds of each step, and of encoding the slice of the last refreshing step alone."""

    def __init__(self, refresher: RollingRefresh, passages: TokenStore) -> None:
        self.steps: list[float] = []
        self.alone: list[float] = []
        self._refresher = refresher
        self._passages = passages
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.steps.append(now() - self._began)
        last = len(self.steps) - 1
        if last % 2 and last >= WARM_UP:
            self.alone.append(self._encode_alone(last if refreshes(last) else last - 1, kwargs["model"]))

    def _encode_alone(self, step: int, encoder: Any) -> float:
        refresher = self._refresher
        assert refresher.state is not None
        began = now()
        encode_spans(
            encoder,
            self._passages,
            refresher.spans_at(step),
            resident=refresher.state.matrix,
            batch_tokens=default_budget(encoder.device),
        )
        return now() - began


def refreshes(step: int) -> bool:
    """Steps 1, 2, 5, 6, 9, 10, ...: of each two one does, by turns the second and the first."""
    return step % 4 in (1, 2)


def measure_overhead(bench: Bench, *, pairs: int, rows: int | None = None) -> dict[str, Any]:
    """Ratios over `pairs` of steps, with `rows` passages a slice: by default as many as a step trains on."""
    settings, folder = bench.settings, bench.folder / "overhead"
    torch.set_num_threads(settings.threads)
    shutil.rmtree(folder, ignore_errors=True)
    config = AnceConfig(
        output_dir=str(folder),
        max_steps=WARM_UP + 2 * pairs,
        batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        dropout=0.0,
        loss="contrastive",
        scale=SCALE,
        start="random",
        refresh="rolling",
        rolling_slice=rows,
        first_refresh=1,
        refresh_every=10**9,
        topk=settings.topk,
        max_query_length=settings.max_length,
        max_document_length=settings.max_length,
        logging_steps=10**9,
        trainer_arguments={"save_strategy": "no"},
    )
    trainer = AnceTrainer(bench.encoder(), bench.dataset("train"), config)
    inner = cast(RollingRefresh, trainer.refresher)
    watch = Stopwatch(inner, trainer.examples.passages)
    trainer.add_callback(watch)
    trainer.refresher = cast(Refresher, TakingTurns(inner))
    trainer.train()
    shutil.rmtree(folder)
    return {"slice": inner.slice_rows, **summary(watch.steps[WARM_UP:], watch.alone)}


def summary(steps: Sequence[float], alone: Sequence[float]) -> dict[str, Any]:
    """Of the steps two by two, and the slice alone after each two.

    step_ratio: step that refreshes / (step that does not + the slice alone). cost_ratio: what refreshing added to the
    step / the slice alone.
    """
    turns = []
    for place, slice_alone in enumerate(alone):
        number = WARM_UP + 2 * place
        first, second = steps[2 * place : 2 * place + 2]
        with_slice, without = (first, second) if refreshes(number) else (second, first)
        turns.append((with_slice, without, slice_alone))
    return {
        "pairs": len(turns),
        "step_ratio": spread([one / (other + slice_alone) for one, other, slice_alone in turns]),
        "cost_ratio": spread([(one - other) / slice_alone for one, other, slice_alone in turns]),
        "seconds": {
            name: statistics.median(turn[place] for turn in turns)
            for place, name in enumerate(("refreshing step", "plain step", "slice alone"))
        },
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile."""
    low, middle, high = np.percentile(values, (20, 50, 80))
    return {"p20": float(low), "p50": float(middle), "p80": float(high)}


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
