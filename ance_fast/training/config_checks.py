"""Settings of `AnceConfig` that only hold together: the order of batches, the optimizer and its rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ance_fast.errors import ConfigError
from ance_fast.training.sampler_config import SamplerConfig

if TYPE_CHECKING:
    from ance_fast.training.config import AnceConfig


def check_order(config: AnceConfig) -> None:
    """Refuse settings of one order of batches that are given for the other, or that it cannot keep."""
    if config.order == "queries":
        for name in ("query_chunks", "triples_per_query"):
            if getattr(config, name) != 1:
                raise ConfigError(f"{name}={getattr(config, name)} is for order='triples', not for 'queries'")
        return
    if config.refresh not in ("sync", "none"):
        raise ConfigError(
            f"order='triples' goes through a generation's triples from its first step on; refresh={config.refresh!r} "
            "has none that begins at a step: choose sync or none"
        )
    if config.negatives_per_query != 1:
        raise ConfigError(
            f"negatives_per_query={config.negatives_per_query}: a triple has one negative; triples_per_query says "
            "how many triples a query gives"
        )
    if config.query_chunks > 1 and "momentum" in SamplerConfig.parse(config.sampler).sources:
        raise ConfigError(
            "sampler: sources=momentum: the generation before has other queries where query_chunks is above 1"
        )
    if config.query_chunks > 1 and config.refresh_overlap is not None:
        raise ConfigError(
            "refresh_overlap keeps a generation, but with query_chunks above 1 each has other queries; leave one out"
        )


def check_rate(config: AnceConfig) -> None:
    """Refuse a learning rate's course, or an optimizer's settings, that cannot be."""
    if config.adam_epsilon < 0:
        raise ConfigError(f"adam_epsilon={config.adam_epsilon}: must not be negative")
    if config.warmup_steps is not None and config.warmup_steps < 0:
        raise ConfigError(f"warmup_steps={config.warmup_steps}: must be at least 0")
    if config.optimizer == "lamb" and "optim" in config.trainer_arguments:
        raise ConfigError(f"trainer_arguments: optim={config.trainer_arguments['optim']!r}, but optimizer='lamb'")
    if config.schedule_steps is not None:
        if config.schedule_steps < config.max_steps:
            raise ConfigError(
                f"schedule_steps={config.schedule_steps}: the learning rate would be 0 before max_steps="
                f"{config.max_steps}"
            )
        if config.warmup != "once":
            raise ConfigError("schedule_steps is for warmup='once'; with 'refresh' each generation has its own")
        if config.lr_scheduler not in ("linear", "cosine"):
            raise ConfigError(f"schedule_steps: lr_scheduler={config.lr_scheduler!r}: choose linear or cosine")
    if config.warmup == "once":
        return
    if config.lr_scheduler not in ("linear", "cosine"):
        raise ConfigError(f"warmup='refresh': lr_scheduler={config.lr_scheduler!r}: choose linear or cosine")
    if config.refresh != "sync" or config.refresh_overlap is not None:
        raise ConfigError(
            "warmup='refresh' begins anew at the steps of the refresh schedule: it is for refresh='sync' without "
            "refresh_overlap"
        )
