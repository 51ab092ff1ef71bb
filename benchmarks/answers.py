"""The matcher of answers beside DPR's own way in Python: one process, rounds in turn.

    python -m benchmarks.run --suite answers --out DIR [--passages 2000] [--questions 100] [--threads N]

Each contestant takes passages of a hundred words and questions with three answers, and says for every question which
of its 100 passages hold one: the package's cuts the passages once and matches, by `threads`; DPR's rule (`has_answer`)
cuts a passage for each pair, as DPR and microsoft/ANCE do. Both have to say the same before anything is timed. A round
times each once, in an order that alternates; the ratio is taken within a round, its median and 20th to 80th percentile
given. DIR receives answers.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import write_json
from ance_fast.evaluation.answer_match import AnswerWords, has_answer
from benchmarks import results

DEPTH = 100
WORDS = 20_000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run --suite answers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    problem = Problem(options.passages, options.questions, options.threads)
    if problem.match() != problem.match_by_python():
        raise RuntimeError("the contestants find different answers: not comparable")
    report: dict[str, Any] = {
        "system": results.describe_system(list(arguments or sys.argv[1:]), options.threads, {}),
        "passages": options.passages,
        "questions": options.questions,
        "pairs": len(problem.rows),
        "threads": options.threads,
        **beside_python(problem, options.rounds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "answers.json", report)
    ratio = report["python_over_matcher"]
    rates = ", ".join(
        f"{name} {len(problem.rows) / seconds:,.0f} pairs/s" for name, seconds in report["seconds"].items()
    )
    print(f"Python takes {ratio['p50']:.0f} times as long ({ratio['p20']:.0f} to {ratio['p80']:.0f}): {rates}")


def beside_python(problem: Problem, rounds: int) -> dict[str, Any]:
    """Median seconds of both and how they compare, round by round."""
    contestants: dict[str, Callable[[], object]] = {"matcher": problem.match, "python": problem.match_by_python}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(seconds["matcher"], seconds["python"], strict=True)]
    low, middle, high = np.percentile(ratios, [20, 50, 80])
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "python_over_matcher": {"p20": low, "p50": middle, "p80": high},
    }


class Problem:
    """Passages and answers of made-up words, of which the frequent ones come up often, as in any language."""

    def __init__(self, passages: int, questions: int, threads: int) -> None:
        generator = np.random.default_rng(0)
        letters = np.array(list("etaoinshrdlcumwfgypbvk"))
        lengths = generator.integers(2, 10, WORDS)
        words = ["".join(generator.choice(letters, length)) for length in lengths.tolist()]
        frequent = 1.0 / np.arange(1, WORDS + 1)
        drawn = generator.choice(WORDS, (passages, 100), p=frequent / frequent.sum())
        self.passages = [f"{' '.join(words[i] for i in row)}." for row in drawn.tolist()]
        self.answers = [
            [" ".join(words[i] for i in generator.integers(0, 2000, size)) for size in (1, 2, 3)]
            for _ in range(questions)
        ]
        self.queries = np.repeat(np.arange(questions), DEPTH)
        self.rows = generator.integers(0, passages, len(self.queries))
        self.threads = threads

    def match(self) -> list[bool]:
        words = AnswerWords(self.answers, threads=self.threads)
        found: list[bool] = words.match(self.queries, words.cut(self.passages), self.rows).tolist()
        return found

    def match_by_python(self) -> list[bool]:
        return [
            has_answer(self.answers[query], self.passages[row])
            for query, row in zip(self.queries.tolist(), self.rows.tolist(), strict=True)
        ]


if __name__ == "__main__":
    main()
