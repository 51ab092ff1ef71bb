"""Training with mined negatives: configuration, trainer, refresh, negatives; each name imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ance_fast.training.config import AnceConfig
    from ance_fast.training.lamb import Lamb
    from ance_fast.training.negatives import NegativeSampler, NegativeTable
    from ance_fast.training.sampler_config import SamplerConfig
    from ance_fast.training.trainer import AnceTrainer

# The stock trainer behind AnceTrainer takes seconds to import, which a refresh worker and a report have no use for.
_HOMES = {
    "AnceConfig": "config",
    "AnceTrainer": "trainer",
    "Lamb": "lamb",
    "NegativeSampler": "negatives",
    "NegativeTable": "negatives",
    "SamplerConfig": "sampler_config",
}

__all__ = ["AnceConfig", "AnceTrainer", "Lamb", "NegativeSampler", "NegativeTable", "SamplerConfig"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ance_fast.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ance_fast.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
