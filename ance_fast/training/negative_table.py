"""`NegativeTable`: one generation of candidates, passage rows and never texts, and where its first form comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ance_fast.artifacts import open_artifact, staged_artifact
from ance_fast.training.examples import Examples

KIND = "negatives"
# Sources that the run's own encoder makes.
ENCODED = ("index", "look-ahead", "momentum")


@dataclass(frozen=True)
class NegativeTable:
    """Candidates int32 [queries, K] (-1 past the end) with their scores float32, from `source`, mined at `step`.

    K = 0 stands for the whole corpus: negatives are drawn from all passages.

    log_weights: float32 [queries, K], by which candidates are drawn; None draws uniformly.
    origins: uint8 [queries, K], bit s set where `sources[s]` had the candidate; None for a table of one source.
    filtered: candidates left out on the way here, by reason, and "candidates", how many there were.
    versions: int32 [queries], the step each query was mined at, -1 if it was not yet; None where all were at `step`.
    queries: int64, ascending, the training query of each row; None where there is a row for all of them.
    """

    candidates: np.ndarray
    scores: np.ndarray
    source: str
    generation: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    log_weights: np.ndarray | None = None
    origins: np.ndarray | None = None
    sources: tuple[str, ...] = ()
    filtered: dict[str, int] = field(default_factory=dict)
    versions: np.ndarray | None = None
    queries: np.ndarray | None = None

    @property
    def ages(self) -> bool:
        """Whether vectors of this run chose any of the candidates: what others chose does not get older."""
        return any(source in ENCODED for source in self.sources or (self.source,))

    def top(self, k: int) -> NegativeTable:
        """The first `k` candidates of each query."""
        # Copied: every batch draws from it, and the engine takes contiguous arrays alone.
        arrays: dict[str, Any] = {name: np.ascontiguousarray(array[:, :k]) for name, array in self._arrays().items()}
        return replace(self, **arrays)

    def of(self, queries: np.ndarray) -> NegativeTable:
        """The rows of these queries (int64), in their order; the table itself where they are all."""
        if np.array_equal(queries, np.arange(len(self.candidates))):
            return self
        arrays: dict[str, Any] = {name: array[queries] for name, array in self._arrays().items()}
        return replace(self, **arrays, versions=None if self.versions is None else self.versions[queries])

    def spread(self, queries: np.ndarray, count: int) -> NegativeTable:
        """The same lists as those of `queries` (int64) in a table of `count`; what it has for others is no list."""

        def placed(array: np.ndarray) -> np.ndarray:
            # Zeros that nobody touches take no memory, however many queries there are.
            whole = np.zeros((count, *array.shape[1:]), dtype=array.dtype)
            whole[queries] = array
            return whole

        arrays: dict[str, Any] = {name: placed(array) for name, array in self._arrays().items()}
        return replace(self, **arrays)

    def whole(self, count: int) -> NegativeTable:
        """Rows for all `count` queries: the table itself, or its lists `spread` where it has only some queries'."""
        return self if self.queries is None else replace(self.spread(self.queries, count), queries=None)

    def trimmed(self) -> NegativeTable:
        """Without the columns past every query's last candidate; one stays, since none would mean the whole corpus."""
        width = max(1, int((self.candidates >= 0).sum(axis=1).max(initial=0)))
        return self if width >= self.candidates.shape[1] else self.top(width)

    def filtered_shares(self) -> dict[str, float]:
        """Share of the candidates left out for each reason that occurred, as "filtered_REASON", to be logged."""
        return filtered_shares(self.filtered)

    def save(self, path: Path) -> None:
        """Write the table as an artifact."""
        manifest = {
            "source": self.source,
            "generation": self.generation,
            "step": self.step,
            "metrics": self.metrics,
            "shape": list(self.candidates.shape),
            "sources": list(self.sources),
            "filtered": self.filtered,
            "arrays": sorted(self._arrays()),
        }
        with staged_artifact(path, KIND, manifest) as folder:
            for name, numbers in (("versions", self.versions), ("queries", self.queries)):
                if numbers is not None:
                    np.save(folder / f"{name}.npy", numbers)
            for name, array in self._arrays().items():
                np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, path: Path, *, mapped: bool = False) -> NegativeTable:
        """Read what `save` wrote (`ArtifactError` if it is not whole).

        `mapped`: its arrays stay in their files until they are used, and checksums are not looked at.
        """
        manifest = open_artifact(path, KIND, verify=not mapped)
        mode: Literal["r"] | None = "r" if mapped else None
        names = manifest.get("arrays", ["candidates", "scores"])
        arrays: dict[str, Any] = {name: np.load(path / f"{name}.npy", mmap_mode=mode) for name in names}
        return cls(
            **arrays,
            source=manifest["source"],
            generation=manifest["generation"],
            step=manifest["step"],
            metrics=manifest["metrics"],
            sources=tuple(manifest.get("sources", ())),
            filtered=manifest.get("filtered", {}),
            **{
                name: np.load(path / f"{name}.npy")
                for name in ("versions", "queries")
                if (path / f"{name}.npy").exists()
            },
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "candidates": self.candidates,
            "scores": self.scores,
            "log_weights": self.log_weights,
            "origins": self.origins,
        }
        return {name: array for name, array in arrays.items() if array is not None}


def filtered_shares(filtered: Mapping[str, int]) -> dict[str, float]:
    """As `NegativeTable.filtered_shares`, of the counts of one table or of several together."""
    total = filtered.get("candidates", 0)
    reasons = {name: count for name, count in filtered.items() if name != "candidates" and count}
    return {f"filtered_{name}": count / total for name, count in reasons.items()} if total else {}


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
    corpus = len(examples.corpus)
    keys = np.arange(len(rows))[:, None] * corpus + rows
    positive = np.isin(keys, pairs[:, 0] * corpus + pairs[:, 1])
    keep = (rows >= 0) & ~positive
    order = np.argsort(~keep, axis=1, kind="stable")
    kept = np.take_along_axis(keep, order, axis=1)
    candidates = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    ordered = np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf)
    return NegativeTable(candidates.astype(np.int32), ordered.astype(np.float32), source, generation, step)
