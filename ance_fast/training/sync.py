"""`refresh="sync"` and `"none"`: training stops at scheduled steps until everything is encoded and mined anew.

Where several processes train, each encodes and mines its share. The first decides whether a refresh is skipped, and
which generation is taken into use; the others compare it with their own before they use it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ance_fast.crash_points import crash_point
from ance_fast.data.chunked_documents import ChunkedDocuments
from ance_fast.errors import ConfigError
from ance_fast.models.encoder import Encoder
from ance_fast.training.chunk_scores import list_scores
from ance_fast.training.examples import Examples
from ance_fast.training.generations import Generation, newest_before
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.new_generation import new_generation
from ance_fast.training.refresh import corpus_index
from ance_fast.training.refresher import RunParts
from ance_fast.training.staleness import overlap
from ance_fast.training.start import start_table

PROBE_QUERIES = 64


class SyncRefresh:
    """Every negative of a generation is mined by exactly the weights it is first used with.

    Raises `ConfigError` if the schedule lets negatives become older than `max_staleness`. Processes that train together
    raise it also when their generations differ, which means that their weights do.
    """

    def __init__(self, parts: RunParts) -> None:
        self.generation: Generation | None = None
        self.seconds = 0.0
        self._parts = parts
        self._steps = set(parts.steps)
        self._refuse_staleness()

    def before_step(self, step: int) -> dict[str, float] | None:
        """Refresh if `step` is one of the schedule and, with `refresh_overlap`, negatives have changed enough."""
        if self.generation is None:
            parts = self._parts
            table = start_table(parts.config, parts.encoder, parts.examples, parts.sampler, parts.ranks)
            self._swap(Generation(parts.encoder.fingerprint(), table))
        if step not in self._steps | self._parts.measured:
            return None
        started = time.monotonic()
        if step not in self._steps:
            report = self._measure(step)
            seconds = time.monotonic() - started
            self.seconds += seconds
            return {**report, "seconds_measure": seconds}
        report = self._refresh(step)
        seconds = time.monotonic() - started
        self.seconds += seconds
        return {**report, "seconds_refresh": seconds}

    def table_for(self, queries: np.ndarray, step: int) -> NegativeTable:
        """The generation's table, whatever the queries."""
        assert self.generation is not None
        return self.generation.table

    def ages(self, passages: np.ndarray, step: int) -> np.ndarray:
        """The same for all: steps since the generation was made."""
        assert self.generation is not None
        return self.generation.ages(passages, step)

    def interval(self) -> dict[str, float]:
        """Nothing between refreshes."""
        return {}

    def save(self, folder: Path, previous: Path | None) -> None:
        """Nothing: generations are published when they are made."""

    def resume(self, folder: Path, step: int) -> None:
        """Take up the generation that was in use after `step` steps."""
        folder = self._parts.folder / "generations"
        self.generation = self._parts.ranks.first(lambda: newest_before(folder, step))

    def close(self) -> None:
        """Nothing works beside the run."""

    def _refresh(self, step: int) -> dict[str, float]:
        assert self.generation is not None
        parts, config, previous = self._parts, self._parts.config, self.generation
        report: dict[str, float] = {}
        if config.refresh_overlap is not None and previous.table.ages:
            found = parts.ranks.first(
                lambda: probed_overlap(parts.encoder, parts.examples, previous.table, seed=config.seed)
            )
            report["probe_overlap"] = found
            if found >= config.refresh_overlap and not self._too_old_if_skipped(step):
                return report
        generation = new_generation(parts, previous, step)
        self._swap(replace(generation, table=replace(generation.table, metrics={**report, **generation.metrics})))
        return {"generation": float(generation.number), **report, **generation.metrics}

    def _measure(self, step: int) -> dict[str, float]:
        """The dev queries by the current weights, when nothing else needs a corpus encoded."""
        parts, index = self._parts, None
        if parts.dev.needs_index:
            index = corpus_index(parts.encoder, parts.examples, parts.config, parts.ranks, parts.dev.passages)
        return parts.ranks.first(lambda: parts.dev(parts.encoder, index, step))

    def _swap(self, generation: Generation) -> None:
        # Published first: what a checkpoint was trained on has to be there when the run is taken up from it.
        parts = self._parts
        parts.ranks.first(lambda: generation.publish(parts.folder / "generations"))
        parts.ranks.agree("the negatives they mined", generation.identity)
        self.generation = generation
        crash_point("generation.swapped")

    def _too_old_if_skipped(self, step: int) -> bool:
        bound = self._parts.config.max_staleness
        if bound is None:
            return False
        assert self.generation is not None
        following = min((later for later in self._steps if later > step), default=self._parts.config.max_steps)
        return following - 1 - self.generation.step > bound

    def _refuse_staleness(self) -> None:
        config, steps = self._parts.config, self._parts.steps
        if config.max_staleness is None:
            return
        # Start negatives that no encoder chose do not age.
        begins = [*([0] if config.start == "index" else []), *steps]
        for begin, end in zip(begins, [*begins[1:], config.max_steps], strict=True):
            if end - begin - 1 > config.max_staleness:
                raise ConfigError(
                    f"max_staleness={config.max_staleness}: between the refreshes at step {begin} and {end} negatives "
                    f"reach an age of {end - begin - 1}; refresh every {config.max_staleness + 1} steps at least, or "
                    "use refresh='rolling'"
                )


def probed_overlap(
    encoder: Encoder, examples: Examples, table: NegativeTable, *, seed: int, queries: int = PROBE_QUERIES
) -> float:
    """How much of its first negatives a sample of queries would keep, at most: mean share, 0 to 1.

    The candidates of `table` are encoded anew and ranked anew for each query. A passage that stays among the first of
    the whole corpus also stays among the first of a part of it, so this is never below the overlap that a refresh would
    find. It costs the candidates of 64 queries instead of the corpus.
    """
    width = table.candidates.shape[1]
    sample = np.random.default_rng(seed).permutation(len(examples))[:queries]
    candidates = table.candidates[sample].astype(np.int64)
    found = np.unique(candidates[candidates >= 0])
    if width == 0 or not len(found):
        return 1.0
    offsets, rows = examples.rows_of(found)
    passages = encoder.encode_tokens(examples.passages, rows).cpu()
    asked = encoder.for_queries.encode_tokens(examples.queries, sample).cpu()
    places = np.where(candidates >= 0, np.searchsorted(found, candidates), -1)
    if offsets is None:
        scores = np.einsum("nd,nkd->nk", asked.numpy(), passages.numpy()[places])
    else:
        # The encoded chunks alone, numbered anew.
        few = ChunkedDocuments(offsets, np.diff(offsets), examples.corpus.ids)
        scores = list_scores(asked, passages, places, few)
    scores[candidates < 0] = -np.inf
    order = np.lexsort((candidates, -scores), axis=1)
    return float(overlap(candidates, np.take_along_axis(candidates, order, axis=1)).mean())
