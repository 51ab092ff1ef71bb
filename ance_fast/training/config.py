"""Settings of a training run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from ance_fast.errors import ConfigError
from ance_fast.training.sampler_config import SamplerConfig

LOSSES = ("pairwise", "contrastive")
SOURCES = ("random", "bm25", "index", "dataset")
REFRESH = ("sync", "none")
POSITIVE = (
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "topk",
    "negatives_per_query",
    "num_proc",
    "logging_steps",
    "save_total_limit",
)


@dataclass
class AnceConfig:
    """How to train. Lengths are tokens, learning rates per optimizer step, steps are optimizer steps.

    loss: "pairwise" is ANCE's own (Xiong et al. 2021, §3): softplus(scale * (q.n - q.p)) on a query's own negatives.
        "contrastive" adds every passage of the batch as a candidate (InfoNCE), known positives masked.
    scale: multiplies scores; by default 20 for encoders that L2-normalise and 1 otherwise.
    start: where negatives come from until the first refresh: "random" passages, "bm25", the untrained encoder's own
    "index",
        or the negatives that the "dataset" brings.
    refresh: "sync" stops every `refresh_every` ("500", "500 steps" or "2 epochs"), encodes, indexes and mines anew;
        "none" keeps the start negatives. `first_refresh` (same form; by default one interval) ends the warm-up;
        `max_refreshes` stops refreshing after so many.
    dropout: replaces every dropout of the checkpoint; on a CPU, drawing masks costs about a fifth of a step.
    topk, negatives_per_query: how many negatives are drawn, from the topk retrieved passages that are not positives.
    sampler: how, for what the encoder retrieves: a preset ("ance", uniformly; "star", "ance-tele", "nv-retriever",
        "simans"), with changes after commas ("simans,a=50"); see `SamplerConfig`.
    """

    output_dir: str
    max_steps: int = 1000
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    warmup_fraction: float = 0.1
    lr_scheduler: str = "linear"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dropout: float | None = None
    loss: str = "contrastive"
    scale: float | None = None
    start: str = "bm25"
    refresh: str = "sync"
    refresh_every: str | int = "1 epoch"
    first_refresh: str | int | None = None
    max_refreshes: int | None = None
    topk: int = 200
    negatives_per_query: int = 1
    sampler: str = "ance"
    max_query_length: int | None = None
    max_document_length: int | None = None
    index_factory: str = "Flat"
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    batch_tokens: int | None = None
    save_every: str | int | None = None
    save_total_limit: int = 2
    logging_steps: int = 10
    seed: int = 42
    num_proc: int = 1
    trainer_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("loss", self.loss, LOSSES),
            ("start", self.start, SOURCES),
            ("refresh", self.refresh, REFRESH),
        ):
            if value not in choices:
                raise ConfigError(f"{name}={value!r}: choose {', '.join(choices)}")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        SamplerConfig.parse(self.sampler)
        if self.topk < self.negatives_per_query:
            raise ConfigError(f"topk={self.topk} is below negatives_per_query={self.negatives_per_query}")
        if self.max_refreshes is not None and self.max_refreshes < 1:
            raise ConfigError(f"max_refreshes={self.max_refreshes}: must be at least 1; refresh='none' is for none")
        if not 0 <= self.warmup_fraction <= 1:
            raise ConfigError(f"warmup_fraction={self.warmup_fraction}: must be between 0 and 1")
        if self.scale is not None and self.scale <= 0:
            raise ConfigError(f"scale={self.scale}: must be positive")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}: must be at least 0 and below 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate={self.learning_rate}: must be positive")
        self.metrics = tuple(self.metrics)
        for name in ("refresh_every", "first_refresh", "save_every"):
            value = getattr(self, name)
            if value is not None:
                steps_of(value, 1, name)

    def refresh_steps(self, steps_per_epoch: int) -> list[int]:
        """Optimizer steps at which a refresh happens before the step's first batch; never at or after the last step."""
        if self.refresh == "none":
            return []
        every = steps_of(self.refresh_every, steps_per_epoch, "refresh_every")
        first = every if self.first_refresh is None else steps_of(self.first_refresh, steps_per_epoch, "first_refresh")
        return list(range(first, self.max_steps, every))[: self.max_refreshes]

    def settings(self) -> dict[str, Any]:
        """What decides the result of a run: everything but where it is written and how it reports."""
        reporting = {"output_dir", "logging_steps", "save_total_limit", "num_proc"}
        return {key: value for key, value in asdict(self).items() if key not in reporting}


def steps_of(value: str | int, steps_per_epoch: int, name: str) -> int:
    """Optimizer steps meant by "500", "500 steps" or "2 epochs" (`ConfigError` otherwise)."""
    match = re.fullmatch(r"\s*(\d+)\s*(|steps?|epochs?)\s*", str(value))
    if not match or int(match[1]) < 1:
        raise ConfigError(f'{name}={value!r}: give a number of steps or epochs, such as "500" or "2 epochs"')
    return int(match[1]) * (steps_per_epoch if match[2].startswith("epoch") else 1)
