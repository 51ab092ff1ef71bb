"""What the sampler does, one query and one candidate at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ance_fast.training import NegativeSampler, NegativeTable
from ance_fast.training.counter_hash import counter_hash

Candidate = tuple[int, float, int]  # row, score, origins


def positives_of(sampler: NegativeSampler, query: int) -> list[int]:
    return sampler.examples.positives_of(np.array([query]))[1].tolist()


def kin(sampler: NegativeSampler, query: int, row: int) -> str | None:
    """Why a passage can never be a negative of the query."""
    positives = positives_of(sampler, query)
    if row in positives:
        return "positive"
    for reason, groups in (("document", sampler.documents), ("content", sampler.contents)):
        if groups is not None and groups[row] in groups[positives]:
            return reason
    return None


def unite(
    sampler: NegativeSampler, tables: Sequence[NegativeTable], query: int, generation: int
) -> tuple[list[Candidate], Counter[str]]:
    config, counts = sampler.config, Counter[str]()
    found: list[tuple[int, int, int, float]] = []
    for source, table in enumerate(tables):
        usable = []
        for rank, row in enumerate(table.candidates[query].tolist()):
            if row < 0:
                continue
            outside = rank < config.rank_min or (config.rank_max is not None and rank >= config.rank_max)
            reason = "window" if outside else kin(sampler, query, row)
            if reason:
                counts[reason] += 1
            else:
                usable.append((rank, source, row, float(table.scores[query, rank])))
        if config.per_source:
            ranks = np.array([rank for rank, *_ in usable], dtype=np.int64)
            order = np.argsort(counter_hash(sampler.seed, generation, query, -1, source, ranks))
            kept = sorted(order[: config.per_source].tolist())
            counts["unsampled"] += len(usable) - len(kept)
            usable = [usable[place] for place in kept]
        found += usable
    candidates: dict[int, Candidate] = {}
    seen: set[int] = set()
    for _, source, row, score in sorted(found, key=lambda one: one[:2]):
        content = row if sampler.contents is None else int(sampler.contents[row])
        if row in candidates:
            candidates[row] = (row, candidates[row][1], candidates[row][2] | 1 << source)
            counts["repeated"] += 1
        elif content in seen:
            counts["content"] += 1
        else:
            candidates[row] = (row, score, 1 << source)
            seen.add(content)
    return list(candidates.values()), counts


def select(
    sampler: NegativeSampler, table: NegativeTable, query: int, given: dict[str, Any]
) -> tuple[list[int], list[float], list[float], Counter[str]]:
    """Rows, scores and log-weights of what is left."""
    config, counts = sampler.config, Counter[str]()
    offsets = sampler.examples.positive_offsets
    positives = given["positive_scores"][offsets[query] : offsets[query + 1]].tolist()
    positive = min(positives)
    scores = table.scores if given["scores"] is None else given["scores"]
    by_score = given["scores"] is not None

    def reason(column: int) -> str | None:
        score = float(scores[query, column])
        if given["answers"][query, column]:
            return "answer"
        if by_score:
            if not math.isfinite(score):
                return "unscored"
            if config.min_score is not None and score < config.min_score:
                return "low"
            if config.max_score is not None and score > config.max_score:
                return "high"
            if config.margin is not None and score > positive - config.margin:
                return "margin"
            if config.percentage is not None and score > positive - abs(positive) * (1 - config.percentage):
                return "percentage"
        if given["teacher_scores"] is not None:
            teacher = float(given["teacher_scores"][query, column])
            low = -math.inf if config.teacher_min is None else config.teacher_min
            high = math.inf if config.teacher_max is None else config.teacher_max
            if not low <= teacher <= high:
                return "teacher"
        tolerance = config.duplicate_tolerance
        if tolerance is not None and any(abs(score - other) <= tolerance for other in positives):
            return "near_duplicate"
        return None

    left = []
    for column in range(table.candidates.shape[1]):
        if table.candidates[query, column] >= 0:
            why = reason(column)
            if why:
                counts[why] += 1
            else:
                left.append((int(table.candidates[query, column]), float(scores[query, column])))
    if by_score:
        left.sort(key=lambda one: -one[1])
        if config.duplicate_tolerance is not None:
            apart: list[tuple[int, float]] = []
            for one in left:
                if apart and apart[-1][1] - one[1] <= config.duplicate_tolerance:
                    counts["near_duplicate"] += 1
                else:
                    apart.append(one)
            left = apart
    if config.keep:
        counts["beyond"] += max(0, len(left) - config.keep)
        left = left[: config.keep]
    rows, kept_scores = [row for row, _ in left], [score for _, score in left]
    weights = log_weights(sampler, kept_scores, positive)
    return rows, kept_scores, [weight - max(weights) for weight in weights], counts


def log_weights(sampler: NegativeSampler, scores: list[float], positive: float) -> list[float]:
    config = sampler.config
    if config.weighting == "top":
        return [-64.0 * place for place in range(len(scores))]
    if config.weighting == "rank-power":
        return [-config.power * math.log(1 + place) for place in range(len(scores))]
    if config.weighting == "softmax":
        return [score / config.temperature for score in scores]
    if config.weighting == "simans":
        return [-config.a * (score - positive - config.b) ** 2 for score in scores]
    if config.weighting == "margin-bins" and scores:
        width = max(scores) - min(scores)
        parts = [(max(scores) - score) / width if width else 0.0 for score in scores]
        bins = [min(int(part * config.bins), config.bins - 1) for part in parts]
        return [-math.log(bins.count(one)) for one in bins]
    return [0.0] * len(scores)


def draw(sampler: NegativeSampler, table: NegativeTable, query: int, step: int) -> list[int]:
    keys: dict[int, tuple[float, int]] = {}
    for column, row in enumerate(table.candidates[query].tolist()):
        if row < 0 or kin(sampler, query, row):
            continue
        number = int(counter_hash(sampler.seed, table.generation, query, step, column))
        key: float = number
        if table.log_weights is not None:
            if table.log_weights[query, column] == -np.inf:
                continue
            exponential = -math.log1p(-((number >> 11) + 0.5) * 2.0**-53)
            key = math.log(exponential) - float(table.log_weights[query, column])
        keys[row] = min(keys.get(row, (math.inf, 0)), (key, column))
    drawn = sorted(keys, key=keys.__getitem__)[: sampler.count]
    corpus = len(sampler.examples.passages)
    usable = {row for row in range(corpus) if not kin(sampler, query, row)}
    for slot in range(len(drawn), sampler.count):
        left = usable - set(drawn)
        attempts = (
            int(counter_hash(sampler.seed, table.generation, query, step, 1_000_003 * (slot + 1) + attempt)) % corpus
            for attempt in range(64)
        )
        drawn.append(next((row for row in attempts if row in left), min(left, default=-1)))
    return drawn
