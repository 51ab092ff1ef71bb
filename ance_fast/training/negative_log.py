"""`negatives.jsonl`: a line a batch that says which negatives it had, so that two runs can be compared step by step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ance_fast.training.staleness import IntervalStats


class NegativeLog:
    """Appends to `path` where this process `writes`, and gathers the ages of the negatives for the metrics log."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self._path = path
        self._writes = writes
        self._ages = IntervalStats()

    def add(self, step: int, negatives: np.ndarray, ages: np.ndarray) -> None:
        """A batch of optimizer step `step` with `negatives` int64 [B, H] (rows, -1 for none) of these `ages` in steps.

        Its line is {"step", "negatives": how many, "ids": BLAKE2b of the array, "age_mean", "age_max"}; no ages where
        no encoder chose the negatives.
        """
        self._ages.add("negative_age", ages, maximum=True)
        if not self._writes:
            return
        digest = hashlib.blake2b(np.ascontiguousarray(negatives, dtype=np.int64).data, digest_size=16).hexdigest()
        entry: dict[str, object] = {"step": step, "negatives": int((negatives >= 0).sum()), "ids": digest}
        if ages.size:
            entry |= {"age_mean": float(ages.mean()), "age_max": int(ages.max())}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def interval(self) -> dict[str, float]:
        """{"negative_age": mean, "negative_age_max": maximum} of the batches since the last call."""
        return self._ages.report()
