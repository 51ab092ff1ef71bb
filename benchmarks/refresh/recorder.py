"""When each step of a run ended, and what the weights were at some of them."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Weights = dict[str, Tensor]


@dataclass
class Trained:
    """A run as it was recorded.

    seconds: from the start of the clock to the end of each step. weights: (step, copy of the transformer's weights).
    extra: what else the contestant has to say.
    """

    seconds: list[float] = field(default_factory=list)
    weights: list[tuple[int, Weights]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Recorder(TrainerCallback):
    """Watches the steps of one trainer after another; the clock stands still while weights are copied.

    Dev queries are measured by these copies after the run, so measuring is charged to nobody, and no worker gains time
    by it.
    """

    def __init__(self, transformer: nn.Module, steps: Collection[int]) -> None:
        self.trained = Trained()
        self._transformer = transformer
        self._steps = frozenset(steps)
        self._started = time.perf_counter()

    def start(self) -> None:
        """Begin the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended = time.perf_counter()
        self.trained.seconds.append(ended - self._started)
        # Not the trainer's own count, which a loop of trainers begins anew.
        step = len(self.trained.seconds)
        if step in self._steps:
            self.trained.weights.append((step, copied(self._transformer)))
            self._started += time.perf_counter() - ended


def copied(module: nn.Module) -> Weights:
    """The weights by name, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}
