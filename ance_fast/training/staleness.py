"""How old and how different negatives are, and how long it took: what is gathered between two lines of the log."""

from __future__ import annotations

import time

import numpy as np

OVERLAP_DEPTH = 10


class IntervalStats:
    """Means and maxima of what was added since the last report."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._most: dict[str, float] = {}

    def add(self, name: str, values: np.ndarray, *, maximum: bool = False) -> None:
        """Count `values` under `name`; with `maximum` their largest is reported too."""
        if not values.size:
            return
        self._sums[name] = self._sums.get(name, 0.0) + float(values.sum(dtype=np.float64))
        self._counts[name] = self._counts.get(name, 0) + values.size
        if maximum:
            self._most[name] = max(self._most.get(name, -np.inf), float(values.max()))

    def report(self) -> dict[str, float]:
        """{name: mean}, and {name + "_max": maximum} where it was asked for; what was counted is forgotten."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        report = means | {f"{name}_max": most for name, most in self._most.items()}
        self._sums, self._counts, self._most = {}, {}, {}
        return report


class Clock:
    """Seconds since `start`, in all and since the last call of `interval`; 0 before it."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._last = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._began = self._last = time.monotonic()

    def seconds(self) -> float:
        """Since `start`."""
        return time.monotonic() - self._began if self._began is not None else 0.0

    def interval(self) -> float:
        """Since the last call, or `start`."""
        now = time.monotonic()
        gone, self._last = now - self._last if self._began is not None else 0.0, now
        return gone


def overlap(old: np.ndarray, new: np.ndarray, depth: int = OVERLAP_DEPTH) -> np.ndarray:
    """Share of each query's first `depth` passages in `new` that are among its first `depth` in `old`: float64 [n].

    Both are row numbers [n, K] of distinct passages, best first, -1 past the end. A query with nothing in `new` has 1.
    """
    first, then = old[:, :depth], new[:, :depth]
    present = then >= 0
    kept = (then[:, :, None] == first[:, None, :]).any(axis=2) & present
    counts = present.sum(axis=1)
    return np.where(counts > 0, kept.sum(axis=1) / np.maximum(counts, 1), 1.0)
