"""What decides a run of the suite, and what each contestant trains with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_fast.training import AnceConfig

PEER = "sentence-transformers"
# Contestant -> what its row of a table is called.
LABELS = {
    "none": "static BM25 negatives",
    "once": "own-index negatives, mined once",
    "sync": "sync",
    "rolling": "rolling",
    "async": "async",
    PEER: "sentence-transformers: mine, new trainer, train",
}
SCALE = 20.0


@dataclass(frozen=True)
class Settings:
    """The same for every contestant.

    passages: of the corpus, those relevant to dev queries first. steps: optimizer steps of `batch` queries with one
    negative each. max_length: tokens, of queries and passages alike. points: how often on the way dev is measured.
    Rates: of the contrastive runs (time, throughput) and of the pairwise ones (quality). threads: of every contestant,
    its worker's included.
    """

    passages: int
    steps: int
    batch: int
    max_length: int
    layers: int
    topk: int
    points: int
    learning_rate: float
    quality_learning_rate: float
    model: str
    device: str
    threads: int
    refresh_threads: int | None

    @property
    def interval(self) -> int:
        """Steps between refreshes, and of the warm-up before the first."""
        return max(1, self.steps // 4)

    @property
    def refreshes(self) -> list[int]:
        return list(range(self.interval, self.steps, self.interval))

    @property
    def measured_steps(self) -> list[int]:
        return sorted({round(self.steps * (i + 1) / self.points) for i in range(self.points)} - {0})

    @property
    def warmup_steps(self) -> int:
        """Of the learning rate."""
        return round(self.steps / 10)


@dataclass(frozen=True)
class Plan:
    """One run: a contestant, a loss ("contrastive" or "pairwise") and a seed."""

    mode: str
    loss: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.mode}-{self.seed}"


def ance_config(settings: Settings, plan: Plan, folder: Path) -> AnceConfig:
    """The settings of one of our contestants."""
    interval = settings.interval
    # Rolling keeps the bound that sync keeps, so both encode as much. Async may take an interval to make a generation
    # and another before the next is asked for; the third is for a machine that others use, too.
    modes: dict[str, dict[str, Any]] = {
        "none": {"refresh": "none"},
        "once": {"refresh": "sync", "max_refreshes": 1},
        "sync": {"refresh": "sync"},
        "rolling": {"refresh": "rolling", "max_staleness": interval - 1},
        "async": {"refresh": "async", "max_staleness": 3 * interval, "refresh_threads": settings.refresh_threads},
    }
    contrastive = plan.loss == "contrastive"
    return AnceConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        batch_size=settings.batch,
        learning_rate=settings.learning_rate if contrastive else settings.quality_learning_rate,
        warmup_fraction=settings.warmup_steps / settings.steps,
        # A loop of new trainers can have the same rate at every step only if the rate stays where it has risen to.
        lr_scheduler="constant_with_warmup" if contrastive else "linear",
        dropout=0.0,
        loss=plan.loss,
        scale=SCALE,
        start="bm25",
        first_refresh=interval,
        refresh_every=interval,
        topk=settings.topk,
        max_query_length=settings.max_length,
        max_document_length=settings.max_length,
        seed=plan.seed,
        logging_steps=max(1, interval // 2),
        # The loop of trainers saves nothing on its way.
        trainer_arguments={"save_strategy": "no"},
        **modes[plan.mode],
    )
