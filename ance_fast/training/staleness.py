"""How old and how different negatives are: numbers gathered between two lines of the log."""

from __future__ import annotations

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


def overlap(old: np.ndarray, new: np.ndarray, depth: int = OVERLAP_DEPTH) -> np.ndarray:
    """Share of each query's first `depth` passages in `new` that are among its first `depth` in `old`: float64 [n].

    Both are row numbers [n, K] of distinct passages, best first, -1 past the end. A query with nothing in `new` has 1.
    """
    first, then = old[:, :depth], new[:, :depth]
    present = then >= 0
    kept = (then[:, :, None] == first[:, None, :]).any(axis=2) & present
    counts = present.sum(axis=1)
    return np.where(counts > 0, kept.sum(axis=1) / np.maximum(counts, 1), 1.0)
