"""The negative sampler beside the same work in NumPy: one process, rounds in turn.

    python -m benchmarks.run --suite sampler --out DIR [--queries 100000] [--candidates 200] [--large 1000000]

Each contestant takes random lists of candidates with scores, removes positives, keeps what scores at most 95 % of the
query's positive, weighs as SimANS does and draws one negative a query. Before anything is timed both have to keep the
same candidates. A round times each once, in an order that alternates; the ratio is taken within a round, its median and
20th to 80th percentile given. `--large` queries are then taken by the sampler alone, once to warm up. DIR receives
sampler.json.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast.artifacts import write_json
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, NegativeTable
from ance_fast.training.sampler_config import SamplerConfig
from benchmarks import results

CONFIG = SamplerConfig(percentage=0.95, weighting="simans", a=2.0)
PASSAGES = 8_841_823  # MS MARCO's


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run --suite sampler", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--large", type=int, default=1_000_000, help="queries for the sampler alone; 0 for none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "system": results.describe_system(list(arguments or sys.argv[1:]), options.threads, {}),
        "queries": options.queries,
        "candidates": options.candidates,
        **beside_numpy(options.queries, options.candidates, options.rounds),
    }
    if options.large:
        gc.collect()
        report["large"] = {"queries": options.large, "seconds": alone(options.large, options.candidates)}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "sampler.json", report)
    ratio = report["numpy_over_sampler"]
    print(f"NumPy takes {ratio['p50']:.1f} times as long ({ratio['p20']:.1f} to {ratio['p80']:.1f})")
    if options.large:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["large"]["seconds"].items())
        print(f"{options.large:,} queries x {options.candidates}: {parts}")


def beside_numpy(queries: int, width: int, rounds: int) -> dict[str, Any]:
    """Times of both, round by round, and how they compare."""
    problem = Problem(queries, width)
    refuse_other_candidates(problem)
    contestants: dict[str, Callable[[], object]] = {"sampler": problem.sample, "numpy": problem.sample_by_numpy}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            contestants[name]()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(seconds["sampler"], seconds["numpy"], strict=True)]
    low, middle, high = np.percentile(ratios, [20, 50, 80])
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "numpy_over_sampler": {"p20": low, "p50": middle, "p80": high},
    }


def alone(queries: int, width: int) -> dict[str, float]:
    """Seconds of each part of the sampler."""
    problem = Problem(queries, width)
    problem.sample()
    seconds = {}
    started = time.perf_counter()
    united = problem.sampler.unite([problem.table], generation=1, step=1)
    seconds["unite"] = time.perf_counter() - started
    started = time.perf_counter()
    chosen = problem.sampler.select(united, positive_scores=problem.positive_scores)
    seconds["select"] = time.perf_counter() - started
    started = time.perf_counter()
    problem.sampler(chosen, problem.every, 1)
    seconds["draw"] = time.perf_counter() - started
    return seconds


@dataclass(frozen=True)
class _Rows:
    """Stands for a token store: the sampler asks how many rows it has, and nothing else."""

    count: int
    chunked: None = None

    def __len__(self) -> int:
        return self.count


class Problem:
    """Lists of `width` candidates for `queries` queries of one positive each, which half of the lists contain."""

    def __init__(self, queries: int, width: int) -> None:
        generator = np.random.default_rng(0)
        self.every = np.arange(queries)
        positives = generator.integers(0, PASSAGES, queries)
        # Of each query its own stretch of passages: distinct ones without the time that drawing them would take.
        starts = generator.integers(0, PASSAGES - width, queries)
        rows = (starts[:, None] + generator.permutation(width)).astype(np.int32)
        rows[::2, 3] = positives[::2]
        scores = np.sort(generator.random((queries, width), dtype=np.float32), axis=1)[:, ::-1].copy()
        self.positive_scores = np.full(queries, 0.9, dtype=np.float32)
        self.table = NegativeTable(rows, scores, "index", 1, 1)
        passages: Any = _Rows(PASSAGES)
        asked: Any = _Rows(queries)
        self.examples = Examples(passages, asked, [], np.arange(queries + 1), positives)
        self.sampler = NegativeSampler(self.examples, seed=0, count=1, config=CONFIG)

    def choose(self) -> NegativeTable:
        united = self.sampler.unite([self.table], generation=1, step=1)
        return self.sampler.select(united, positive_scores=self.positive_scores)

    def sample(self) -> np.ndarray:
        return self.sampler(self.choose(), self.every, 1)

    def choose_by_numpy(self) -> np.ndarray:
        """bool [queries, width]: which candidates stay."""
        rows, scores = self.table.candidates, self.table.scores
        own = rows == self.examples.positive_rows[:, None]
        return ~own & (scores <= np.float32(CONFIG.percentage) * self.positive_scores[:, None])

    def sample_by_numpy(self) -> np.ndarray:
        kept = self.choose_by_numpy()
        weights = -CONFIG.a * (self.table.scores - self.positive_scores[:, None] - CONFIG.b) ** 2
        noise = np.random.default_rng(1).gumbel(size=weights.shape)
        keys = np.where(kept, weights + noise, -np.inf)
        return np.take_along_axis(self.table.candidates, keys.argmax(axis=1)[:, None], axis=1)


def refuse_other_candidates(problem: Problem) -> None:
    """Both have to keep the same; what is drawn differs by chance."""
    chosen, kept = problem.choose(), problem.choose_by_numpy()
    ours = np.sort(np.where(chosen.candidates >= 0, chosen.candidates, np.iinfo(np.int32).max), axis=1)
    theirs = np.sort(np.where(kept, problem.table.candidates, np.iinfo(np.int32).max), axis=1)[:, : ours.shape[1]]
    if not np.array_equal(ours, theirs) or kept.sum() != (chosen.candidates >= 0).sum():
        raise RuntimeError("the contestants keep different candidates: not comparable")


if __name__ == "__main__":
    main()
