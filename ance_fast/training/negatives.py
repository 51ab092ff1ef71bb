"""From candidate lists to the negatives of a batch.

A generation is made by `NegativeSampler.unite` (several sources to one list, positives and their kin taken out) and
`NegativeSampler.select` (filters, weights). A batch draws from it. Draws are counter-based: each is a hash of (seed,
generation, query, step, slot), so they do not depend on batch composition, number of processes, or whether the run was
resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.training.answers import AnswerMatch
from ance_fast.training.counter_hash import counter_hash
from ance_fast.training.examples import Examples
from ance_fast.training.given_candidates import ScoredPairs
from ance_fast.training.negative_table import NegativeTable, given_table, mined_table, random_table
from ance_fast.training.sampler_config import SamplerConfig

__all__ = [
    "NegativeSampler",
    "NegativeTable",
    "choose_positives",
    "draw_negatives",
    "given_table",
    "mined_table",
    "random_table",
]

# Queries whose draws are compared with their lists at once: 16 MB of 20 draws from 200 candidates each.
BLOCK_QUERIES = 4096

# Which candidates answer their query: the mask, bool [queries, K], or a function of (queries int64 [m], passage rows
# int64 [m]) that returns bool [m].
Answers = np.ndarray | Callable[[np.ndarray, np.ndarray], np.ndarray]


class NegativeSampler:
    """The candidates of each generation and the negatives of each batch, for the run's examples and seed.

    documents, contents: int64 [passages], equal for chunks of one document and for passages of the same text. Passages
        that share one with a positive are never negatives of its query, and a query has each content once.
    tables, teacher, answers: what a refresh takes as sources, as teacher scores and for the answers of all queries;
        `unite` and `select` are handed theirs.

    `unite` and `select` take the time of a sort or a hash a candidate, in C++ over threads; results are the same for
    any number of them.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        seed: int,
        count: int,
        config: SamplerConfig | None = None,
        documents: np.ndarray | None = None,
        contents: np.ndarray | None = None,
        tables: Mapping[str, NegativeTable] | None = None,
        teacher: ScoredPairs | None = None,
        answers: AnswerMatch | None = None,
    ) -> None:
        self.examples = examples
        self.tables = dict(tables or {})
        self.teacher = teacher
        self.answers = answers
        self.seed = seed
        self.count = count
        self.config = config or SamplerConfig()
        for name, groups in (("documents", documents), ("contents", contents)):
            if groups is not None and groups.shape != (len(examples.corpus),):
                raise ConfigError(f"{name} has shape {groups.shape}, the corpus {len(examples.corpus)} passages")
        self.documents = None if documents is None else np.ascontiguousarray(documents, dtype=np.int64)
        self.contents = None if contents is None else np.ascontiguousarray(contents, dtype=np.int64)

    def __call__(self, table: NegativeTable, queries: np.ndarray, step: int) -> np.ndarray:
        """Rows int64 [len(queries), count] for these query indices at optimizer step `step`; -1 where none is left."""
        return draw_negatives(
            table,
            self.examples,
            queries,
            self.count,
            seed=self.seed,
            step=step,
            documents=self.documents,
            contents=self.contents,
        )

    def unite(
        self, tables: Sequence[NegativeTable], *, generation: int, step: int, queries: np.ndarray | None = None
    ) -> NegativeTable:
        """One list a query from the tables' lists, merged by rank; of equal ranks the earlier table's comes first.

        Taken out: ranks outside the window, positives, passages of their documents or of their content, what
        `per_source` does not draw, and repetitions. A candidate keeps the score of where it came up first and, in
        `origins`, all tables that had it. `queries` int64 names those that the tables have rows for; by default all.

        Raises `ConfigError` for tables of other queries, none or more than 8; `ValueError` for rows outside the corpus.
        """
        if not 1 <= len(tables) <= 8:
            raise ConfigError(f"{len(tables)} candidate tables to unite: between 1 and 8")
        wanted, positives = self._asked(queries)
        for table in tables:
            if len(table.candidates) != len(wanted):
                raise ConfigError(
                    f"candidates of {table.source!r} are for {len(table.candidates)} queries, not {len(wanted)}"
                )
        lists = [
            (np.ascontiguousarray(t.candidates, dtype=np.int32), np.ascontiguousarray(t.scores, dtype=np.float32))
            for t in tables
        ]
        shape = len(wanted), sum(rows.shape[1] for rows, _ in lists)
        rows, scores = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32)
        origins = np.empty(shape, dtype=np.uint8)
        config = self.config
        counts = _C.unite_candidates(
            lists,
            positives,
            queries=wanted,
            passages=len(self.examples.corpus),
            documents=self.documents,
            contents=self.contents,
            rank_min=config.rank_min,
            rank_max=np.iinfo(np.int64).max if config.rank_max is None else config.rank_max,
            per_source=config.per_source or 0,
            seed=_unsigned(self.seed),
            generation=_unsigned(generation),
            rows=rows,
            scores=scores,
            origins=origins,
            threads=torch.get_num_threads(),
        )
        filtered = {"candidates": sum(int((rows_of >= 0).sum()) for rows_of, _ in lists), **counts}
        names = tuple(table.source for table in tables)
        united = NegativeTable(rows, scores, "+".join(names), generation, step, {}, None, origins, names, filtered)
        return united.trimmed()

    def select(
        self,
        table: NegativeTable,
        *,
        scores: np.ndarray | None = None,
        positive_scores: np.ndarray | None = None,
        teacher_scores: np.ndarray | None = None,
        answers: Answers | None = None,
        queries: np.ndarray | None = None,
    ) -> NegativeTable:
        """Filter and weight the candidates of `table`; counts of what went are added to its `filtered`.

        scores: float32 [queries, K] of the candidates, on one scale with `positive_scores`; by default the table's own,
            which must then come from one source. A candidate without one (NaN, infinite) goes, reason "unscored".
        positive_scores: float32 [P], in the order of `examples.positive_rows`, or of `examples.positives_of(queries)`.
        teacher_scores: float32 [queries, K].
        queries: int64, those that the table has rows for; by default all.
        answers: passages that answer the query though nobody judged them; a function is asked about candidates only.

        Raises `ConfigError` when a setting needs scores that are not given, or shapes do not fit.
        """
        config, shape = self.config, table.candidates.shape
        wanted, (offsets, positive_rows) = self._asked(queries)
        by_score = config.needs_scores or scores is not None
        if config.needs_scores and scores is None and (len(table.sources) > 1 or config.scores != "inner_product"):
            raise ConfigError(
                f"the sampler reads {config.scores} scores; those of {table.source!r} are not on one such scale: "
                "pass scores="
            )
        if config.needs_positive_scores and positive_scores is None:
            raise ConfigError("the sampler compares with the scores of the positives: pass positive_scores=")
        if config.needs_teacher and teacher_scores is None:
            raise ConfigError("the sampler has teacher thresholds: pass teacher_scores=")
        if positive_scores is not None and not np.isfinite(positive_scores).all():
            raise ConfigError("positive_scores holds NaN or infinity")
        if shape[0] != len(wanted):
            raise ConfigError(f"the table has {shape[0]} queries, not {len(wanted)}")
        mask = _answer_mask(table, answers, wanted)
        given = {"scores": scores, "teacher_scores": teacher_scores, "answers": mask}
        for name, array in given.items():
            if array is not None and array.shape != shape:
                raise ConfigError(f"{name} has shape {array.shape}, the candidates {shape}")
        if positive_scores is not None and positive_scores.shape != positive_rows.shape:
            raise ConfigError(f"positive_scores has shape {positive_scores.shape}, the positives {positive_rows.shape}")
        origins = table.origins if table.origins is not None else np.ones(shape, dtype=np.uint8)
        out_origins = np.empty(shape, dtype=np.uint8)
        selected = replace(
            table,
            candidates=np.empty(shape, dtype=np.int32),
            scores=np.empty(shape, dtype=np.float32),
            origins=out_origins,
            log_weights=None if config.weighting == "uniform" else np.empty(shape, dtype=np.float32),
        )
        counts = _C.select_candidates(
            np.ascontiguousarray(table.candidates, dtype=np.int32),
            np.ascontiguousarray(table.scores if scores is None else scores, dtype=np.float32),
            np.ascontiguousarray(origins, dtype=np.uint8),
            teacher=None if teacher_scores is None else np.ascontiguousarray(teacher_scores, dtype=np.float32),
            answers=mask,
            positive_offsets=None if positive_scores is None else offsets,
            positive_scores=None if positive_scores is None else np.ascontiguousarray(positive_scores, np.float32),
            min_score=_threshold(config.min_score),
            max_score=_threshold(config.max_score),
            margin=_threshold(config.margin),
            percentage=_threshold(config.percentage),
            teacher_min=_threshold(config.teacher_min),
            teacher_max=_threshold(config.teacher_max),
            duplicate_tolerance=_threshold(config.duplicate_tolerance),
            keep=config.keep or 0,
            by_score=by_score,
            weighting=config.weighting,
            power=config.power,
            temperature=config.temperature,
            a=config.a,
            b=config.b,
            bins=config.bins,
            out_rows=selected.candidates,
            out_scores=selected.scores,
            out_origins=out_origins,
            out_log_weights=selected.log_weights,
            threads=torch.get_num_threads(),
        )
        before = table.filtered or {"candidates": int((table.candidates >= 0).sum())}
        return replace(selected, filtered={**before, **counts}).trimmed()

    def _asked(self, queries: np.ndarray | None) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        if queries is None:
            return np.arange(len(self.examples)), (self.examples.positive_offsets, self.examples.positive_rows)
        return np.ascontiguousarray(queries, dtype=np.int64), self.examples.positives_of(queries)


def draw_negatives(
    table: NegativeTable,
    examples: Examples,
    queries: np.ndarray,
    count: int,
    *,
    seed: int,
    step: int,
    documents: np.ndarray | None = None,
    contents: np.ndarray | None = None,
    fill: bool = True,
) -> np.ndarray:
    """Draw `count` distinct negatives for each query from its candidates: rows int64 [len(queries), count].

    Without replacement, by the table's weights. A query with fewer candidates is filled up uniformly from the whole
    corpus, or without `fill` by -1. Positives, and passages that share one of `documents` or `contents` (int64
    [passages]) with them, never appear; where the corpus itself has no passage left, the entry is -1.
    """
    drawn = np.empty((len(queries), count), dtype=np.int64)
    _C.draw_negatives(
        np.ascontiguousarray(table.candidates, dtype=np.int32),
        None if table.log_weights is None else np.ascontiguousarray(table.log_weights, dtype=np.float32),
        np.ascontiguousarray(queries, dtype=np.int64),
        (examples.positive_offsets, examples.positive_rows),
        passages=len(examples.corpus),
        documents=documents,
        contents=contents,
        seed=_unsigned(seed),
        generation=_unsigned(table.generation),
        step=_unsigned(step),
        drawn=drawn,
        threads=torch.get_num_threads(),
    )
    return drawn if fill else _from_candidates(drawn, table, queries)


def choose_positives(examples: Examples, queries: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """One positive of each query, uniformly: rows int64 [len(queries)]."""
    starts = examples.positive_offsets[queries]
    counts = (examples.positive_offsets[queries + 1] - starts).astype(np.uint64)
    return examples.positive_rows[starts + (counter_hash(seed, -1, queries, step, 0) % counts).astype(np.int64)]


def _from_candidates(drawn: np.ndarray, table: NegativeTable, queries: np.ndarray) -> np.ndarray:
    """Those drawn that a list of candidates has, -1 for the others; all of them where the list is the whole corpus."""
    if not table.candidates.shape[1]:
        return drawn
    found = np.empty(drawn.shape, dtype=np.bool_)
    for start in range(0, len(queries), BLOCK_QUERIES):
        block = slice(start, start + BLOCK_QUERIES)
        listed = table.candidates[queries[block]]
        if table.log_weights is not None:
            listed = np.where(np.isneginf(table.log_weights[queries[block]]), -1, listed)
        found[block] = (drawn[block, :, None] == listed[:, None, :]).any(axis=2)
    return np.where(found, drawn, -1)


def _answer_mask(table: NegativeTable, answers: Answers | None, wanted: np.ndarray) -> np.ndarray | None:
    if answers is None:
        return None
    if not callable(answers):
        return np.ascontiguousarray(answers, dtype=np.bool_)
    mask = np.zeros(table.candidates.shape, dtype=np.bool_)
    queries, columns = np.nonzero(table.candidates >= 0)
    mask[queries, columns] = answers(wanted[queries], table.candidates[queries, columns].astype(np.int64))
    return mask


def _threshold(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _unsigned(value: int) -> int:
    """The number as the hash sees it: two's complement."""
    return int(value) & (2**64 - 1)
