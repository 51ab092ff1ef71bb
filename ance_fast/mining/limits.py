"""Which retrieved passages may serve as negatives: a window of ranks, scores, and margins to the positive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ance_fast.errors import ConfigError

SAMPLING = ("top", "random")


@dataclass(frozen=True)
class Limits:
    """Filters on the candidates of a query, the nearest first. None: no such filter.

    range_max: how many of the nearest to look at. range_min: how many of those that pass the other filters to skip, the
        nearest ones. max_score, min_score: the scores a negative may have.
    absolute_margin: a negative scores at least this much below the query's lowest positive.
    relative_margin: the same as a share of that positive's magnitude (0.05: TopK-PercPos at 95 %, Moreira et al. 2024).

    Raises `ConfigError` for an empty window.
    """

    range_max: int
    range_min: int = 0
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    def __post_init__(self) -> None:
        if self.range_min < 0:
            raise ConfigError(f"range_min={self.range_min}: must not be negative")
        if self.range_min >= self.range_max:
            raise ConfigError(f"range_min={self.range_min} must be smaller than range_max={self.range_max}")

    @property
    def by_margin(self) -> bool:
        """Whether the scores of positives are needed."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def refuse_too_few(self, count: int) -> None:
        """Raise `ConfigError` if `count` negatives cannot come from the window."""
        room = self.range_max - self.range_min
        if count < 1:
            raise ConfigError(f"{count} negatives a query asked for; ask for at least 1")
        if count > room:
            raise ConfigError(
                f"{count} negatives a query asked for, but only {room} candidates are left after range_min="
                f"{self.range_min} of range_max={self.range_max}; ask for fewer, or raise range_max"
            )

    @staticmethod
    def refuse_unknown_sampling(sampling: str) -> None:
        """Raise `ConfigError` for a way to choose negatives that there is not."""
        if sampling not in SAMPLING:
            raise ConfigError(f"sampling {sampling!r}: choose {' or '.join(SAMPLING)}")

    def passing(self, scores: np.ndarray, lowest: np.ndarray, removed: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """The candidates that pass, best first: their columns int64 and scores float32, both [n, <= window].

        scores: float32 [n, width], -inf where there is no candidate; past the last that passes it is -inf again.
        lowest: float32 [n], of each query's positives. removed: counts what each filter took, by its name.
        """
        scores = scores.copy()

        def remove(name: str, which: np.ndarray) -> None:
            which &= scores > -np.inf
            removed[name] = removed.get(name, 0) + int(which.sum())
            scores[which] = -np.inf

        if self.absolute_margin is not None:
            remove("absolute_margin", scores + np.float32(self.absolute_margin) > lowest[:, None])
        if self.relative_margin is not None:
            # Off the magnitude, not times (1 - margin): for a negative score that would raise the threshold.
            threshold = lowest - np.abs(lowest) * np.float32(self.relative_margin)
            remove("relative_margin", scores > threshold[:, None])
        if self.max_score is not None:
            remove("max_score", scores > np.float32(self.max_score))
        if self.min_score is not None:
            remove("min_score", scores < np.float32(self.min_score))
        columns = np.argsort(-scores, axis=1, kind="stable")[:, self.range_min : self.range_max]
        return columns, np.take_along_axis(scores, columns, axis=1)
