"""Candidate negatives per query, and drawing from them.

A `NegativeTable` is one generation of candidates: passage rows, never texts, with the positives already taken out.
Draws are counter-based: each is a hash of (seed, generation, query, step, slot), so they do not depend on batch
composition, number of processes, or whether the run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import open_artifact, staged_artifact
from ance_fast.training.examples import Examples

KIND = "negatives"


@dataclass(frozen=True)
class NegativeTable:
    """Candidates int32 [queries, K] (-1 past the end) with their scores float32, from `source`, mined at `step`.

    K = 0 stands for the whole corpus: negatives are drawn from all passages. `versions` int32 [queries]: the step each
    query was mined at, -1 if it was not yet; None where all were mined at `step`.
    """

    candidates: np.ndarray
    scores: np.ndarray
    source: str
    generation: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    versions: np.ndarray | None = None

    def top(self, k: int) -> NegativeTable:
        """The first `k` candidates of each query."""
        return replace(self, candidates=self.candidates[:, :k], scores=self.scores[:, :k])

    def save(self, path: Path) -> None:
        """Write the table as an artifact."""
        manifest = {
            "source": self.source,
            "generation": self.generation,
            "step": self.step,
            "metrics": self.metrics,
            "shape": list(self.candidates.shape),
        }
        with staged_artifact(path, KIND, manifest) as folder:
            np.save(folder / "candidates.npy", self.candidates)
            np.save(folder / "scores.npy", self.scores)
            if self.versions is not None:
                np.save(folder / "versions.npy", self.versions)

    @classmethod
    def load(cls, path: Path) -> NegativeTable:
        """Read what `save` wrote (`ArtifactError` if it is not whole)."""
        manifest = open_artifact(path, KIND)
        return cls(
            np.load(path / "candidates.npy"),
            np.load(path / "scores.npy"),
            manifest["source"],
            manifest["generation"],
            manifest["step"],
            manifest["metrics"],
            np.load(path / "versions.npy") if (path / "versions.npy").exists() else None,
        )


def random_table(examples: Examples) -> NegativeTable:
    """Generation 0 that draws uniformly from the corpus."""
    empty = np.zeros((len(examples), 0))
    return NegativeTable(empty.astype(np.int32), empty.astype(np.float32), "random", 0, 0)


def given_table(examples: Examples) -> NegativeTable:
    """Generation 0 from the negatives that the data set brings."""
    pairs = examples.given if examples.given is not None else np.zeros((0, 2), dtype=np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    counts = np.bincount(pairs[:, 0], minlength=len(examples))
    slot = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((len(examples), int(counts.max(initial=0)) or 1), -1, dtype=np.int64)
    rows[pairs[:, 0], slot] = pairs[:, 1]
    return mined_table(examples, rows, np.zeros(rows.shape, dtype=np.float32), "dataset", 0, 0)


def mined_table(
    examples: Examples, rows: np.ndarray, scores: np.ndarray, source: str, generation: int, step: int
) -> NegativeTable:
    """Turn search results (rows int [queries, K], best first, -1 past the end) into candidates: positives removed."""
    pairs = examples.pairs
    corpus = len(examples.passages)
    keys = np.arange(len(rows))[:, None] * corpus + rows
    positive = np.isin(keys, pairs[:, 0] * corpus + pairs[:, 1])
    keep = (rows >= 0) & ~positive
    order = np.argsort(~keep, axis=1, kind="stable")
    kept = np.take_along_axis(keep, order, axis=1)
    candidates = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    ordered = np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf)
    return NegativeTable(candidates.astype(np.int32), ordered.astype(np.float32), source, generation, step)


def draw_negatives(
    table: NegativeTable, examples: Examples, queries: np.ndarray, count: int, *, seed: int, step: int
) -> np.ndarray:
    """Draw `count` distinct negatives for each query, uniformly from its candidates: rows int64 [len(queries), count].

    A query with fewer candidates is filled up from the whole corpus. Positives never appear; where the corpus itself
    has no passage left, the entry is -1.
    """
    candidates = table.candidates[queries].astype(np.int64)
    drawn = np.full((len(queries), count), -1, dtype=np.int64)
    width = candidates.shape[1]
    if width:
        key = _hash(seed, table.generation, queries[:, None], step, np.arange(width))
        key = np.where(candidates >= 0, key, np.uint64(2**64 - 1))
        best = np.argsort(key, axis=1, kind="stable")[:, :count]
        drawn[:, : best.shape[1]] = np.take_along_axis(candidates, best, axis=1)
    for position, slot in np.argwhere(drawn < 0):
        query = int(queries[position])
        taken = set(drawn[position].tolist())
        taken |= set(examples.positives_of(np.array([query]))[1].tolist())
        drawn[position, slot] = _from_corpus(table, len(examples.passages), taken, query, int(slot), seed, step)
    return drawn


class NegativeSampler:
    """Draws the training batches' negatives: `draw_negatives` with the run's examples, seed and count."""

    def __init__(self, examples: Examples, *, seed: int, count: int) -> None:
        self.examples = examples
        self.seed = seed
        self.count = count

    def __call__(self, table: NegativeTable, queries: np.ndarray, step: int) -> np.ndarray:
        """Rows int64 [len(queries), count] for these query indices at optimizer step `step`; -1 where none is left."""
        return draw_negatives(table, self.examples, queries, self.count, seed=self.seed, step=step)


def choose_positives(examples: Examples, queries: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """One positive of each query, uniformly: rows int64 [len(queries)]."""
    starts = examples.positive_offsets[queries]
    counts = (examples.positive_offsets[queries + 1] - starts).astype(np.uint64)
    return examples.positive_rows[starts + (_hash(seed, -1, queries, step, 0) % counts).astype(np.int64)]


def _from_corpus(
    table: NegativeTable, corpus: int, taken: set[int], query: int, slot: int, seed: int, step: int
) -> int:
    for attempt in range(64):
        row = int(_hash(seed, table.generation, query, step, 1_000_003 * (slot + 1) + attempt) % np.uint64(corpus))
        if row not in taken:
            return row
    # Rejection hardly ever fails; when nearly every passage is taken, look at all of them.
    return next((row for row in range(corpus) if row not in taken), -1)


def _hash(*parts: int | np.ndarray) -> np.ndarray:
    """SplitMix64 over broadcast integer parts: uint64, uniform (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state: Any = np.uint64(0x9E3779B97F4A7C15)
        for part in parts:
            value = (
                np.asarray(part).astype(np.int64).view(np.uint64) if np.ndim(part) else np.int64(part).view(np.uint64)
            )
            state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)
