"""`refresh="rolling"`: the index is never rebuilt; before every step a slice of it is encoded anew, in place.

The slice goes round the corpus in order of rows, so it always holds the stalest vectors and no vector is older than
ceil(N / slice) - 1 steps. Queries are mined for each batch, just before it, by the current weights (as ADORE does, Zhan
et al., SIGIR 2021), so their side is never stale. One process, and nothing that depends on time: two runs are alike bit
for bit, and so is one that was killed and resumed.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ance_fast.crash_points import crash_point
from ance_fast.data.chunks import SEPARATOR
from ance_fast.encoding import encode_spans
from ance_fast.encoding.budget import default_budget
from ance_fast.errors import ConfigError, DataError
from ance_fast.index import Index
from ance_fast.index.factory import is_flat
from ance_fast.training.candidate_sources import list_width, view_candidates
from ance_fast.training.chunk_scores import list_scores
from ance_fast.training.config import AnceConfig
from ance_fast.training.generations import Generation, newest_before
from ance_fast.training.measures import judged_candidates, probe_batches, probe_losses
from ance_fast.training.negative_table import NegativeTable, filtered_shares
from ance_fast.training.refresher import RunParts
from ance_fast.training.resident_state import ResidentState, load_state, save_state
from ance_fast.training.staleness import OVERLAP_DEPTH, IntervalStats, overlap
from ance_fast.training.start import start_table
from ance_fast.training.view import Csr, View

# Steps whose lists count as recent for `rolling_hot`.
RECENT_STEPS = 16


class RollingRefresh:
    """Raises `ConfigError` for an index that cannot be changed in place, several processes, and a `rolling_slice` too
    small for `max_staleness`."""

    def __init__(self, parts: RunParts) -> None:
        config = parts.config
        if not is_flat(config.index_factory):
            raise ConfigError(
                f"refresh='rolling' writes new vectors over old ones; {config.index_factory!r} would have to be built "
                "again, only exact search ('Flat') need not; use Flat, or refresh='sync'"
            )
        if parts.ranks.size > 1:
            raise ConfigError(f"refresh='rolling' runs in one process, here are {parts.ranks.size}; use refresh='sync'")
        self.generation: Generation | None = None
        self.seconds = 0.0
        self.slice_rows = slice_for(config, len(parts.examples.passages))
        self.state: ResidentState | None = None
        self._parts = parts
        self._first = parts.steps[0] if parts.steps else config.max_steps
        self._index: Index | None = None
        self._interval = IntervalStats()
        self._filtered: Counter[str] = Counter()
        self._seconds_reported = 0.0

    def before_step(self, step: int) -> dict[str, float] | None:
        """Encode this step's slice; at steps of the schedule also measure and publish a generation."""
        parts = self._parts
        if self.generation is None:
            table = start_table(parts.config, parts.encoder, parts.examples, parts.sampler)
            self._publish(Generation(parts.encoder.fingerprint(), table))
        if step < self._first:
            return None
        started = time.monotonic()
        if self.state is None:
            self.state = self._make_state()
            self._keep_start_lists()
            self._encode_spans([(0, len(parts.examples.passages))], step)
        else:
            self._encode_spans(self.spans_at(step), step)
            self._encode_rows(self._hot_rows(step), step)
        self.generation = self._generation_at(step)
        report = self._measured(step) if step in parts.steps else None
        self.seconds += time.monotonic() - started
        return report

    def table_for(self, queries: np.ndarray, step: int) -> NegativeTable:
        """The table in which these queries have been mined just now, by the current weights."""
        assert self.generation is not None
        if self.state is not None:
            started = time.monotonic()
            self._mine(queries, step)
            self.seconds += time.monotonic() - started
        return self.generation.table

    def ages(self, passages: np.ndarray, step: int) -> np.ndarray:
        """By the step at which each passage was encoded."""
        if self.state is None:
            return np.zeros(0, dtype=np.int64)
        offsets, rows = self._parts.examples.rows_of(passages)
        versions = self.state.versions[rows].astype(np.int64)
        if offsets is not None and len(passages):
            versions = np.minimum.reduceat(versions, offsets[:-1])  # a document is as old as its oldest chunk
        return step - versions

    def interval(self) -> dict[str, float]:
        """Hardness of the lists, what was filtered, what they kept of the query's previous one, the seconds it took."""
        report = self._interval.report() | filtered_shares(self._filtered)
        self._filtered.clear()
        if self.state is not None:
            report["seconds_refresh"] = self.seconds - self._seconds_reported
            report["checkpoint_bytes"] = float(self.state.bytes_written)
        self._seconds_reported = self.seconds
        return report

    def save(self, folder: Path, previous: Path | None) -> None:
        """The matrix, its versions and the lists: what changed since `previous`, which is linked, or all."""
        if self.state is not None:
            save_state(self.state, folder, previous)

    def resume(self, folder: Path, step: int) -> None:
        """Take up the matrix as it was after `step` steps."""
        parts = self._parts
        self.generation = newest_before(parts.folder / "generations", step)
        if step > self._first:
            self.state = load_state(self._make_state(), folder)
            self.generation = self._generation_at(step - 1)

    def close(self) -> None:
        """Nothing works beside the run."""

    def spans_at(self, step: int) -> list[tuple[int, int]]:
        """The rows (start, stop) of the slice of `step`; two spans where it goes past the end of the corpus."""
        count = len(self._parts.examples.passages)
        if self.slice_rows >= count:
            return [(0, count)]
        start = (step - self._first - 1) * self.slice_rows % count
        stop = start + self.slice_rows
        return [(start, stop)] if stop <= count else [(start, count), (0, stop - count)]

    def _make_state(self) -> ResidentState:
        encoder, examples, sampler = self._parts.encoder, self._parts.examples, self._parts.sampler
        config, count = sampler.config, len(examples.passages)
        topk, corpus = self._parts.config.topk, len(examples.corpus)
        shape = len(examples), list_width(config, sampler.tables, topk=topk, corpus=corpus)
        centred = config.scores == "centred" and config.needs_scores
        state = ResidentState(
            matrix=torch.zeros(count, encoder.dim, device=encoder.device),
            versions=np.full(count, -1, dtype=np.int32),
            candidates=np.full(shape, -1, dtype=np.int32),
            scores=np.full(shape, -np.inf, dtype=np.float32),
            mined=np.full(len(examples), -1, dtype=np.int32),
            log_weights=None if config.weighting == "uniform" else np.zeros(shape, dtype=np.float32),
            origins=np.zeros(shape, dtype=np.uint8) if len(config.sources) > 1 else None,
            total=torch.zeros(encoder.dim, dtype=torch.float64, device=encoder.device) if centred else None,
        )
        # It sees every later change of the matrix.
        self._index = Index.over(state.matrix, examples.passages.ids.arrow, check=False)
        if examples.documents is not None:
            self._index.set_documents(SEPARATOR, examples.documents)
        return state

    def _keep_start_lists(self) -> None:
        """What "momentum" has of a query that was not mined yet is the start's list."""
        assert self.state is not None
        assert self.generation is not None
        first = replace(self.generation.table.top(self.state.candidates.shape[1]), log_weights=None, origins=None)
        self.state.keep(np.arange(len(self._parts.examples)), first, mined=-1)

    def _encode_spans(self, spans: list[tuple[int, int]], step: int) -> None:
        assert self.state is not None
        parts = self._parts
        with ExitStack() as changes:
            for start, stop in spans:
                changes.enter_context(self.state.changed(slice(start, stop)))
            encode_spans(
                parts.encoder, parts.examples.passages, spans, resident=self.state.matrix, batch_tokens=self._budget()
            )
        for start, stop in spans:
            self.state.versions[start:stop] = step

    def _encode_rows(self, rows: np.ndarray, step: int) -> None:
        if not len(rows):
            return
        assert self.state is not None
        parts = self._parts
        vectors = parts.encoder.encode_tokens(parts.examples.passages, rows, batch_tokens=self._budget())
        if not torch.isfinite(vectors).all():
            raise DataError(f"embeddings of passages hold NaN or infinity at step {step}; lower the learning rate")
        with self.state.changed(rows):
            self.state.matrix[torch.from_numpy(rows).to(vectors.device)] = vectors
        self.state.versions[rows] = step

    def _encode_stale(self, rows: np.ndarray, step: int) -> None:
        """By the current weights, those of the passages `rows` (any shape, -1 for none) that are not yet."""
        assert self.state is not None
        _, rows = self._parts.examples.rows_of(np.unique(rows[rows >= 0]).astype(np.int64))
        self._encode_rows(rows[self.state.versions[rows] < step], step)

    def _hot_rows(self, step: int) -> np.ndarray:
        """The stalest passages of recently mined lists, by (version, row), less those of this step's slice."""
        assert self.state is not None
        most = self._parts.config.rolling_hot
        if not most:
            return np.zeros(0, dtype=np.int64)
        recent = self.state.candidates[self.state.mined >= max(0, step - RECENT_STEPS)]
        _, rows = self._parts.examples.rows_of(np.unique(recent[recent >= 0]).astype(np.int64))
        rows = rows[self.state.versions[rows] < step]
        return np.sort(rows[np.argsort(self.state.versions[rows], kind="stable")[:most]])

    def _mine(self, queries: np.ndarray, step: int) -> None:
        assert self.state is not None
        assert self.generation is not None
        state = self.state
        view = self._view(queries, step, rerank=self._parts.config.rerank)
        lists = self._lists(view, step)
        again = state.mined[queries] >= 0
        before = state.candidates[queries][again]
        self._interval.add(f"overlap@{OVERLAP_DEPTH}", overlap(before, lists.candidates[again]))
        self._filtered.update(lists.filtered)
        self._count_hardness(view, lists)
        state.keep(queries, lists, mined=step)

    def _lists(self, view: View, step: int) -> NegativeTable:
        assert self.generation is not None
        parts = self._parts
        # Each step draws (a positive to look ahead from, passages at random) as a generation of its own would.
        return view_candidates(
            view,
            parts.examples,
            parts.sampler,
            self.generation.table,
            topk=parts.config.topk,
            generation=step,
            step=step,
        )

    def _view(self, queries: np.ndarray, step: int, *, rerank: int | None) -> View:
        """The queries by the current weights, the passages as they are in the matrix, or with `rerank` made anew."""
        assert self.state is not None
        assert self._index is not None
        parts, config, state, index = self._parts, self._parts.config, self.state, self._index
        depth, documents = min(rerank or config.topk, len(parts.examples.corpus)), parts.examples.documents

        def search(vectors: torch.Tensor, excluded: Csr) -> tuple[np.ndarray, np.ndarray]:
            hidden = excluded if documents is None else documents.all_rows(excluded)
            found = index.search_documents(vectors.cpu().numpy(), depth, exclude_positions=hidden)
            if rerank is None:
                return found.positions, found.scores
            rows, scores = self._reranked(vectors, found.positions, step)
            return rows[:, : config.topk], scores[:, : config.topk]

        def centre() -> torch.Tensor:
            assert state.total is not None
            return (state.total / len(state.matrix)).float()

        def freshen(rows: np.ndarray) -> None:
            if rerank is not None:
                self._encode_stale(rows, step)

        tower = parts.encoder.for_queries
        vectors = tower.encode_tokens(parts.examples.queries, queries, batch_tokens=self._budget())
        # Chunks past a document's end can be found, but do not count in a loss.
        exact = documents is None or bool((documents.filled == np.diff(documents.starts)).all())
        return View(queries, vectors, state.matrix, search, centre, freshen, exact=exact, documents=documents)

    def _reranked(self, queries: torch.Tensor, rows: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`rows` [n, L] in the order of scores with vectors of the current weights, which stay in the matrix."""
        assert self.state is not None
        self._encode_stale(rows, step)
        matrix, documents = self.state.matrix, self._parts.examples.documents
        if documents is None:
            found = matrix[torch.from_numpy(rows.clip(min=0)).to(matrix.device)]
            scores = torch.einsum("nd,nkd->nk", queries, found).cpu().numpy()
        else:
            scores = list_scores(queries, matrix, rows, documents)
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _count_hardness(self, view: View, lists: NegativeTable) -> None:
        """How the lists stand to each query's best-scored positive, as it is in the matrix."""
        positives = self._parts.examples.positives_of(view.queries)
        config = self._parts.sampler.config
        raw = lists.sources == ("index",) and (config.scores == "inner_product" or not config.needs_scores)
        products = lists.scores if raw and view.exact else view.inner_products(lists.candidates)
        best = np.maximum.reduceat(view.positive_products(positives), positives[0][:-1])
        margin = (best[:, None] - products)[lists.candidates >= 0]
        self._interval.add("margin", margin)
        self._interval.add("harder_than_positive", (margin < 0).astype(np.float64))

    def _generation_at(self, step: int) -> Generation:
        """The generation of `step`: the live lists and the index over the live matrix, under a number of its own."""
        assert self.state is not None
        assert self.generation is not None
        state, number = self.state, bisect_right(self._parts.steps, step)
        sources = self._parts.sampler.config.sources
        table = NegativeTable(
            state.candidates,
            state.scores,
            "+".join(sources),
            number,
            step,
            self.generation.metrics,
            log_weights=state.log_weights,
            origins=state.origins,
            sources=sources if state.origins is not None else (),
            versions=state.mined,
        )
        return Generation(self.generation.fingerprint, table, self._index)

    def _measured(self, step: int) -> dict[str, float]:
        assert self.generation is not None
        assert self._index is not None
        started = time.monotonic()
        parts, now = self._parts, self.generation
        report = self._probed(step) | judged_candidates(parts, now.table) | parts.dev(parts.encoder, self._index, step)
        report["seconds_measure"] = time.monotonic() - started
        table = replace(now.table, metrics=report)
        self._publish(Generation(parts.encoder.fingerprint(), table, self._index))
        return {"generation": float(now.number), **report}

    def _probed(self, step: int) -> dict[str, float]:
        """The probe's loss on lists mined now and on its latest ones. Lists and matrix stay as they are."""
        assert self.generation is not None
        parts, batches = self._parts, probe_batches(self._parts)
        queries, examples, encoder = np.concatenate(batches), self._parts.examples, self._parts.encoder
        lists = self._lists(self._view(queries, step, rerank=None), step)

        def embed(some: np.ndarray, passages: np.ndarray) -> torch.Tensor:
            budget = self._budget()
            vectors = encoder.for_queries.encode_tokens(examples.queries, some, batch_tokens=budget)
            return torch.cat([vectors, encoder.encode_tokens(examples.passages, passages, batch_tokens=budget)])

        new = lists.spread(queries, len(examples))
        return probe_losses(parts, self.generation.table, new, step, batches, embed)

    def _publish(self, generation: Generation) -> None:
        generation.publish(self._parts.folder / "generations")
        self.generation = generation
        crash_point("generation.swapped")

    def _budget(self) -> int:
        # Not a measured one: batches decide the last bits of the vectors, and a run must be repeatable.
        return self._parts.config.batch_tokens or default_budget(self._parts.encoder.device)


def slice_for(config: AnceConfig, passages: int) -> int:
    """Rows to encode before each step so that no vector becomes older than `max_staleness` steps.

    Without a bound: `rolling_slice`, or as many as a step trains on. Raises `ConfigError` when not both can hold.
    """
    per_step = config.batch_size * config.gradient_accumulation_steps * (1 + config.negatives_per_query)
    if config.max_staleness is None:
        return min(passages, config.rolling_slice or per_step)
    # A vector is encoded at every k-th step, k = ceil(passages / slice), and k - 1 steps old just before that.
    needed = -(-passages // (config.max_staleness + 1))
    if config.rolling_slice is not None and config.rolling_slice < needed:
        raise ConfigError(
            f"max_staleness={config.max_staleness} with rolling_slice={config.rolling_slice}: {passages} passages "
            f"would reach an age of {-(-passages // config.rolling_slice) - 1} steps; "
            f"the bound takes a slice of {needed}"
        )
    return min(passages, config.rolling_slice or needed)
