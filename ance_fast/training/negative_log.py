"""`negatives.jsonl`: a line a batch that says which negatives it had, so that two runs can be compared step by step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.training.judgements import Judgements
from ance_fast.training.staleness import IntervalStats


class NegativeLog:
    """Appends to `path` where this process `writes`, and gathers ages and false negatives for the metrics log."""

    def __init__(self, path: Path, *, judgements: Judgements | None = None, writes: bool = True) -> None:
        self._path = path
        self._judgements = judgements
        self._writes = writes
        self._interval = IntervalStats()
        self._generation = _Ages()

    def add(self, step: int, queries: np.ndarray, negatives: np.ndarray, ages: np.ndarray) -> None:
        """A batch of optimizer step `step`: `queries` int64 [B] with `negatives` int64 [B, H] (rows, -1 for none), and
        the `ages` of these in steps.

        Its line is {"step", "negatives": how many, "ids": BLAKE2b of the array, "age_mean", "age_max"}; no ages where
        no encoder chose the negatives.
        """
        self._interval.add("negative_age", ages, maximum=True)
        if self._judgements is not None:
            for name, shares in self._judgements.shares(queries, negatives).items():
                self._interval.add(name, shares)
        digest = hashlib.blake2b(np.ascontiguousarray(negatives, dtype=np.int64).data, digest_size=16).hexdigest()
        entry: dict[str, Any] = {"step": step, "negatives": int((negatives >= 0).sum()), "ids": digest}
        if ages.size:
            entry |= {"age_mean": float(ages.mean()), "age_max": int(ages.max())}
        self._generation.add(entry)
        if self._writes:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def interval(self) -> dict[str, float]:
        """{"negative_age": mean, "negative_age_max": maximum} of the batches since the last call, and what
        `Judgements.shares` says of their negatives."""
        return self._interval.report()

    def generation(self) -> dict[str, float]:
        """{"stale_negative_age": mean, "stale_negative_age_max": maximum} of the batches since the last call, which is
        to be made when a generation ends."""
        ended, self._generation = self._generation, _Ages()
        return ended.report()

    def resume(self, step: int) -> None:
        """Take up what `generation` had gathered by the lines of `path` from `step` on, the present one's first."""
        self._generation = _Ages()
        if not self._path.exists():
            return
        with open(self._path, encoding="utf-8") as file:
            for entry in map(json.loads, file):
                if entry["step"] >= step:
                    self._generation.add(entry)


class _Ages:
    """Mean and maximum over lines of the log, and of nothing but them: a resumed run finds the same bits."""

    def __init__(self) -> None:
        self._sum, self._count, self._most = 0.0, 0, 0

    def add(self, entry: dict[str, Any]) -> None:
        if "age_mean" in entry:
            count = entry["negatives"]
            self._sum += entry["age_mean"] * count
            self._count += count
            self._most = max(self._most, entry["age_max"])

    def report(self) -> dict[str, float]:
        if not self._count:
            return {}
        return {"stale_negative_age": self._sum / self._count, "stale_negative_age_max": float(self._most)}
