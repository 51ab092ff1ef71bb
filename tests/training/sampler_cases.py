"""Examples without texts, and random problems for the sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ance_fast.data import TokenStore
from ance_fast.training import NegativeSampler, NegativeTable, SamplerConfig
from ance_fast.training.examples import Examples


class _Rows:
    """Stands for a token store where only the number of rows matters."""

    chunked = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def examples_of(positives: list[list[int]], corpus: int, given: np.ndarray | None = None) -> Examples:
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in positives])]).astype(np.int64)
    rows = np.array([row for some in positives for row in sorted(some)], dtype=np.int64)
    store: TokenStore = _Rows(corpus)  # type: ignore[assignment]
    queries: TokenStore = _Rows(len(positives))  # type: ignore[assignment]
    return Examples(store, queries, [""] * len(positives), offsets, rows, given)


@dataclass
class Problem:
    """Tables to unite, and everything that `NegativeSampler.select` may be given."""

    sampler: NegativeSampler
    tables: list[NegativeTable]
    positive_scores: np.ndarray
    random: np.random.Generator

    def scores(self, shape: tuple[int, ...]) -> np.ndarray:
        return quarters(self.random, shape)

    def negatives(self) -> tuple[NegativeTable, NegativeTable, dict[str, Any]]:
        """The united table, the selected one, and what `select` was given."""
        united = self.sampler.unite(self.tables, generation=3, step=7)
        shape = united.candidates.shape
        given = {
            "scores": self.scores(shape) if self.sampler.config.needs_scores else None,
            "positive_scores": self.positive_scores,
            "teacher_scores": self.scores(shape) if self.sampler.config.needs_teacher else None,
            "answers": self.random.random(shape) < 0.1,
        }
        return united, self.sampler.select(united, **given), given


def quarters(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores on a coarse grid, so that equal ones and exact bounds occur; some are missing."""
    scores = random.integers(-8, 9, shape).astype(np.float32) / 4
    scores[random.random(shape) < 0.1] = np.nan
    return scores


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def configs(draw: st.DrawFn) -> SamplerConfig:
    grid = st.integers(0, 8).map(lambda n: n / 4)
    rank_min = draw(st.integers(0, 3))
    low, teacher_low = draw(optional(grid.map(lambda g: -g))), draw(optional(grid.map(lambda g: -g)))
    return SamplerConfig(
        rank_min=rank_min,
        rank_max=draw(optional(st.integers(rank_min + 1, rank_min + 12))),
        per_source=draw(optional(st.integers(1, 5))),
        min_score=low,
        max_score=draw(optional(grid)),
        margin=draw(optional(grid)),
        percentage=draw(optional(st.sampled_from([0.25, 0.5, 1.0]))),
        duplicate_tolerance=draw(optional(st.sampled_from([0.0, 0.25]))),
        teacher_min=teacher_low,
        teacher_max=draw(optional(grid)),
        keep=draw(optional(st.integers(1, 8))),
        weighting=draw(st.sampled_from(["uniform", "top", "rank-power", "softmax", "simans", "margin-bins"])),
        power=draw(grid),
        temperature=draw(st.sampled_from([0.1, 1.0])),
        a=draw(grid),
        b=draw(grid),
        bins=draw(st.integers(1, 4)),
    )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    corpus = draw(st.integers(2, 30))
    queries = draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    positives = [random.permutation(corpus)[: random.integers(1, min(4, corpus) + 1)].tolist() for _ in range(queries)]
    tables = []
    for source in range(draw(st.integers(1, 3))):
        # With positives, repetitions and holes: nothing is taken for granted of a source.
        rows = random.integers(-1, corpus, (queries, int(random.integers(0, 20)))).astype(np.int32)
        tables.append(NegativeTable(rows, quarters(random, rows.shape), f"source{source}", 0, 0))
    groups = [random.integers(0, corpus, corpus) if draw(st.booleans()) else None for _ in range(2)]
    examples = examples_of(positives, corpus)
    count, seed = draw(st.integers(1, 6)), draw(st.integers(-3, 3))
    sampler = NegativeSampler(
        examples, seed=seed, count=count, config=draw(configs()), documents=groups[0], contents=groups[1]
    )
    positive_scores = random.integers(-8, 9, len(examples.positive_rows)).astype(np.float32) / 4
    return Problem(sampler, tables, positive_scores, random)
