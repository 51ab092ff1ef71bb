"""The settings of a run as `transformers.Trainer` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ance_fast.training.config import AnceConfig


def stock_arguments(config: AnceConfig, folder: Path, steps_per_epoch: int, *, use_cpu: bool) -> TrainingArguments:
    """What the stock trainer is to do; `config.trainer_arguments` have the last word."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.rise,
        "lr_scheduler_type": config.lr_scheduler,
        "weight_decay": config.weight_decay,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "save_strategy": "steps",
        "save_steps": config.save_steps(steps_per_epoch),
        "logging_strategy": "steps",
        "logging_steps": config.logging_steps,
        "seed": config.seed,
        "data_seed": config.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "use_cpu": use_cpu,
        **({"train_sampling_strategy": "sequential"} if config.order == "triples" else {}),
    }
    arguments = TrainingArguments(**{**settings, **config.trainer_arguments})
    # Several GPUs are for torchrun, a process each: the stock trainer would wrap the model in DataParallel, which
    # cannot split a packed batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
