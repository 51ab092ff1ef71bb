"""What a run shows while it goes: a progress bar, and TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ance_fast.progress import plain_number, progress_bar

logger = logging.getLogger(__name__)

# Of what is logged at a refresh, what fits a line.
SHOWN = (
    "generation",
    "eval_",
    "overlap",
    "probe_overlap",
    "harder",
    "margin",
    "loss_",
    "seconds_refresh",
    "steps_behind",
)


class ProgressCallback(TrainerCallback):
    """A bar over optimizer steps; dev metrics and hardness as a line at each refresh. Close it when training ends."""

    _open = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar = progress_bar("training", state.max_steps, "steps")
        self._advance = self._bar.__enter__()
        self._advance(state.global_step, found=True)
        self._open = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance(1)

    def close(self) -> None:
        """End the bar, also after an error: a terminal must get its cursor back."""
        if self._open:
            self._open = False
            self._bar.__exit__(None, None, None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "generation" in logs:
            shown = {key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith(SHOWN)}
            logger.info("step %d: %s", state.global_step, "  ".join(f"{k} {plain_number(v)}" for k, v in shown.items()))


class EndCallback(TrainerCallback):
    """Calls `finish` when training ends. Trackers that come after it are not closed yet, and get what it logs."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finish()


def tensorboard_callback(folder: Path, purge_step: int | None) -> TrainerCallback | None:
    """Log to TensorBoard files in `folder`, hiding what an interrupted run wrote from `purge_step` on.

    None, with a message, when tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard files: pip install 'ance_fast[plots]' to have them")
        return None
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=purge_step))
