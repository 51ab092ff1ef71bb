"""What a way to refresh needs of a run, and what the trainer asks it between its steps.

Adding one: a class with the methods of `Refresher`, and a line in `modes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ance_fast.models.encoder import Encoder
from ance_fast.training.config import AnceConfig
from ance_fast.training.dev import DevMeasure
from ance_fast.training.examples import Examples
from ance_fast.training.generations import Generation
from ance_fast.training.negatives import NegativeSampler, NegativeTable
from ance_fast.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class RunParts:
    """What a refresher works with.

    steps: the optimizer steps of the schedule, ascending. measured: those before which dev queries are measured
    without a refresh. ranks: the processes that train; the first of them writes.
    """

    config: AnceConfig
    encoder: Encoder
    examples: Examples
    sampler: NegativeSampler
    dev: DevMeasure
    folder: Path
    steps: list[int]
    ranks: Ranks = ALONE
    measured: frozenset[int] = frozenset()


class Refresher(Protocol):
    """Makes generations of negatives. The trainer asks, in this order: `before_step` once before the first batch of an
    optimizer step, `table_for` and `ages` for every batch of it, `save` after the step if a checkpoint is due.

    Attributes:
        generation: the one in use; None before the first step.
        seconds: spent in refreshing so far, while training waited.
    """

    generation: Generation | None
    seconds: float

    def before_step(self, step: int) -> dict[str, float] | None:
        """Make what is due before `step`; what there is to log about it, or None."""

    def table_for(self, queries: np.ndarray, step: int) -> NegativeTable:
        """The candidates that a batch of these query indices draws from."""

    def ages(self, passages: np.ndarray, step: int) -> np.ndarray:
        """How old the vectors are by which these passages (rows) were chosen as negatives of `step`, in steps.

        Empty where no encoder chose them.
        """

    def interval(self) -> dict[str, float]:
        """What was measured since the last call."""

    def save(self, folder: Path, previous: Path | None) -> None:
        """Write into the checkpoint's new `folder` what cannot be made again; `previous` is that of the one before."""

    def resume(self, folder: Path, step: int) -> None:
        """Be as `save` wrote into `folder` after `step` steps. Raises `ArtifactError`."""

    def close(self) -> None:
        """The last step has been made, or the run has failed: end what works beside it."""
