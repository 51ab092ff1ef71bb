"""Training with mined negatives: configuration, trainer, refresh, negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ance_fast.training.config import AnceConfig
from ance_fast.training.negatives import NegativeSampler, NegativeTable
from ance_fast.training.sampler_config import SamplerConfig

if TYPE_CHECKING:
    from ance_fast.training.trainer import AnceTrainer

__all__ = ["AnceConfig", "AnceTrainer", "NegativeSampler", "NegativeTable", "SamplerConfig"]


def __getattr__(name: str) -> Any:
    # The stock trainer behind it takes two seconds to import, which a refresh worker has no use for.
    if name == "AnceTrainer":
        from ance_fast.training.trainer import AnceTrainer

        return AnceTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
