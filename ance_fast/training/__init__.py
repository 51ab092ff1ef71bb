"""Training with mined negatives: configuration, trainer, refresh, negatives."""

from ance_fast.training.config import AnceConfig
from ance_fast.training.negatives import NegativeSampler, NegativeTable
from ance_fast.training.sampler_config import SamplerConfig
from ance_fast.training.trainer import AnceTrainer

__all__ = ["AnceConfig", "AnceTrainer", "NegativeSampler", "NegativeTable", "SamplerConfig"]
