"""How candidate negatives are chosen: `SamplerConfig` and its presets, each a published method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ance_fast.errors import ConfigError

SCORES = ("inner_product", "centred", "cosine", "teacher")
WEIGHTINGS = ("uniform", "top", "rank-power", "softmax", "simans", "margin-bins")
REFRESHED = ("index", "look-ahead", "momentum", "random")
"""Sources that a refresh makes by itself."""
BUILT = ("bm25", "dataset")
"""Sources that a run makes once, unless it is given a run file of that name."""
TEACHER = "teacher"
"""The run file that gives the teacher's scores."""


@dataclass(frozen=True)
class SamplerConfig:
    """Which candidates of a query become negatives. None switches a filter off; a candidate on a bound stays.

    Where from:
        sources: lists that are united: "index" (the query's own search), "look-ahead" (the search with a positive
            passage as the query), "momentum" (the generation before), "random"; in a run also "bm25", "dataset" (the
            negatives it brings) and any name of `AnceConfig.candidates`.
        rank_min, rank_max: ranks used of each list, from 0, `rank_max` excluded.
        per_source: so many of each list, drawn uniformly; None takes all.
        count_positives: the query's own search finds topk passages of which some can be its positives, which go; so
            microsoft/ANCE does. Else it finds topk others.
        contents: leave out passages with the same tokens as a positive, or as another candidate.

    Filters by score:
        scores: the scores that filters and weights read. "inner_product", the index's own; "centred", less the query's
            inner product with the mean passage; "cosine"; "teacher", given by the caller, in a run by the run file
            "teacher" or the data set.
        min_score, max_score: bounds (TopK-Abs).
        margin: at least so far below the positive (TopK-MarginPos).
        percentage: at most this part of the positive's score (TopK-PercPos), for a negative one as far below it.
            Meaningless on unbounded inner products: those of an encoder that does not normalise can all lie within 5 %
            of each other (ANCE's lie near 700), and 0.95 drops nearly all. Take "cosine", "centred" or "teacher" scores
            there.
        duplicate_tolerance: leave out candidates that score within it of a positive, or of a better candidate: copies
            of a text have equal scores.
        teacher_min, teacher_max: bounds of the teacher's score (RocketQA keeps negatives below 0.1).
        keep: so many candidates, the best first, after the filters.

    Where a query has several positives, the lowest-scored counts. With a filter or a weighting that reads scores,
    candidates are ordered by score, otherwise by rank.

    Weights of the draw (without replacement):
        weighting: "uniform"; "top", always the first; "rank-power", (1 + rank) ** -power; "softmax",
            exp(score / temperature); "simans", exp(-a (score - positive - b)^2), `a` in units of 1 / score^2;
            "margin-bins", evenly over `bins` equal parts of the query's range of margins; empty ones do not count.

    Sources: Xiong et al., ICLR 2021 (ANCE); Moreira et al., arXiv 2407.15831 (TopK-*); Qu et al., NAACL 2021
    (RocketQA); Zhou et al., EMNLP 2022 (SimANS); Hofstätter et al., SIGIR 2021 (margin bins).

    Raises `ConfigError` for values that cannot hold.
    """

    sources: tuple[str, ...] = ("index",)
    rank_min: int = 0
    rank_max: int | None = None
    per_source: int | None = None
    count_positives: bool = False
    contents: bool = False
    scores: str = "inner_product"
    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    percentage: float | None = None
    duplicate_tolerance: float | None = None
    teacher_min: float | None = None
    teacher_max: float | None = None
    keep: int | None = None
    weighting: str = "uniform"
    power: float = 1.0
    temperature: float = 1.0
    a: float = 1.0
    b: float = 0.0
    bins: int = 10

    def __post_init__(self) -> None:
        for name, choices in (("scores", SCORES), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"sampler: {name}={getattr(self, name)!r}: choose {', '.join(choices)}")
        if not 1 <= len(self.sources) <= 8 or len(set(self.sources)) < len(self.sources):
            raise ConfigError(f"sampler: sources={self.sources}: between 1 and 8 different ones")
        if self.rank_min < 0 or (self.rank_max is not None and self.rank_max <= self.rank_min):
            raise ConfigError(f"sampler: rank_min={self.rank_min}, rank_max={self.rank_max}: no rank lies between")
        for name in ("per_source", "keep", "bins"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"sampler: {name}={value}: must be at least 1")
        for name in ("margin", "duplicate_tolerance", "power", "a"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"sampler: {name}={value}: must not be negative")
        if not self.temperature > 0:
            raise ConfigError(f"sampler: temperature={self.temperature}: must be positive")
        if self.percentage is not None and not 0 < self.percentage <= 1:
            raise ConfigError(f"sampler: percentage={self.percentage}: must be above 0 and at most 1, such as 0.95")
        for low, high in (("min_score", "max_score"), ("teacher_min", "teacher_max")):
            bounds = getattr(self, low), getattr(self, high)
            if None not in bounds and bounds[0] > bounds[1]:
                raise ConfigError(f"sampler: {low}={bounds[0]} is above {high}={bounds[1]}")

    @classmethod
    def parse(cls, text: str) -> SamplerConfig:
        """A preset, with changes: "nv-retriever" or "simans,a=50,sources=index+momentum" (`ConfigError` otherwise)."""
        name, *changes = [part.strip() for part in text.split(",")]
        if name not in PRESETS:
            raise ConfigError(f"sampler={text!r}: begin with one of {', '.join(PRESETS)}, then NAME=VALUE after commas")
        known = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for change in changes:
            key, equals, value = (part.strip() for part in change.partition("="))
            if not equals or key not in known:
                raise ConfigError(f"sampler={text!r}: {change!r} is not NAME=VALUE with one of {', '.join(known)}")
            try:
                values[key] = _value_of(known[key], value)
            except ValueError as error:
                raise ConfigError(f"sampler={text!r}: {change!r}: {value!r} is not {known[key]}") from error
        return replace(PRESETS[name], **values)

    @property
    def needs_scores(self) -> bool:
        """Whether a filter or the weighting reads scores."""
        bounds = (self.min_score, self.max_score, self.margin, self.percentage, self.duplicate_tolerance)
        return self.weighting in ("softmax", "simans", "margin-bins") or any(value is not None for value in bounds)

    @property
    def needs_positive_scores(self) -> bool:
        """Whether a filter or the weighting compares with the positive's score."""
        bounds = (self.margin, self.percentage, self.duplicate_tolerance)
        return self.weighting == "simans" or any(value is not None for value in bounds)

    @property
    def needs_teacher(self) -> bool:
        """Whether a filter reads the teacher's scores."""
        return self.teacher_min is not None or self.teacher_max is not None

    @property
    def reads_teacher(self) -> bool:
        """Whether anything reads the teacher's scores."""
        return self.needs_teacher or (self.scores == "teacher" and self.needs_scores)


def check_sources(config: SamplerConfig, candidates: Mapping[str, str], start: str) -> None:
    """Raise `ConfigError` for a source that nothing makes, and for a run file of `candidates` (name -> path) that
    nothing uses: neither a source, nor what the run starts from, nor the teacher's scores."""
    used = {*config.sources, start, *([TEACHER] if config.reads_teacher else [])}
    for name in candidates:
        if name in REFRESHED or not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"candidates: {name!r} cannot name a run file; choose another name of letters and digits")
        if name not in used:
            raise ConfigError(
                f"candidates: nothing uses {name!r}; add it to the sampler's sources, as in "
                f'sampler="ance,sources=index+{name}"'
            )
    unknown = [source for source in config.sources if source not in (*REFRESHED, *BUILT, *candidates)]
    if unknown:
        raise ConfigError(
            f"sampler: sources={'+'.join(unknown)}: a run makes {', '.join((*REFRESHED, *BUILT))}; "
            f"name a run file for {unknown[0]!r} in candidates"
        )


def _value_of(kind: str, text: str) -> Any:
    if "None" in kind and text.lower() == "none":
        return None
    if kind.startswith("tuple"):
        return tuple(text.split("+"))
    if kind.startswith("bool"):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind.startswith("int"):
        return int(text)
    return float(text) if kind.startswith("float") else text


PRESETS = {
    "ance": SamplerConfig(),
    "star": SamplerConfig(rank_max=200),
    "ance-tele": SamplerConfig(sources=("index", "look-ahead", "momentum"), rank_max=200, per_source=30),
    "nv-retriever": SamplerConfig(scores="cosine", percentage=0.95, keep=10),
    "simans": SamplerConfig(weighting="simans", a=1.0, b=0.0),
}
