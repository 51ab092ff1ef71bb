"""From recorded runs to the figures of the report; plain functions of what the files of the runs hold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ance_fast.evaluation import Evaluation, paired_significance
from benchmarks.refresh.bench import METRICS
from benchmarks.refresh.settings import PEER

Result = dict[str, Any]
Curve = list[tuple[float, float]]
"""(seconds, metric), by time; the first point is the untrained encoder when the first step ends."""

# Of the way from the untrained encoder to the best that sync reaches.
SHARES = (0.9, 0.95, 0.98)
QUALITY = ("none", "once", "sync")


def curve(result: Result, start: float, metric: str = METRICS[0]) -> Curve:
    return [(result["seconds"][0], start), *((point["seconds"], point[metric]) for point in result["curve"])]


def time_to(points: Curve, target: float) -> float | None:
    """When the straight lines between the points first reach `target`; None if they never do, or did untrained."""
    if points[0][1] >= target:
        return None
    for (before, low), (after, high) in pairwise(points):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None


def time_to_quality(results: Sequence[Result], start: float) -> list[dict[str, Any]]:
    """A row for each target: seconds of every contestant with every seed, and ratios to the peer's and to sync's.

    The targets of a seed are shares of the way to the best that sync reached, and the best that all reached that
    refresh at all. A
    ratio above 1 says that the contestant was faster. Seeds that lack a contestant are left out.
    """
    modes = list(dict.fromkeys(result["mode"] for result in results))
    by_seed: dict[int, dict[str, Curve]] = {}
    for result in results:
        by_seed.setdefault(result["seed"], {})[result["mode"]] = curve(result, start)
    complete = {seed: curves for seed, curves in by_seed.items() if set(curves) == set(modes) and "sync" in curves}
    rows = []
    for share in (*SHARES, None):
        targets = {seed: _target(curves, share) for seed, curves in complete.items()}
        seconds = {
            mode: {seed: time_to(curves[mode], targets[seed]) for seed, curves in complete.items()} for mode in modes
        }
        rows.append(
            {
                "target": "the best that all that refresh reached"
                if share is None
                else f"{share:.0%} of the way to sync's best",
                "values": targets,
                "seconds": seconds,
                "faster": {
                    other: {mode: _ratios(seconds[other], seconds[mode]) for mode in modes if mode != other}
                    for other in (PEER, "sync")
                    if other in modes
                },
            }
        )
    return rows


def _target(curves: dict[str, Curve], share: float | None) -> float:
    if share is None:
        return min(max(value for _, value in points) for mode, points in curves.items() if mode != "none")
    start = curves["sync"][0][1]
    return start + share * (max(value for _, value in curves["sync"]) - start)


def _ratios(others: dict[int, float | None], mine: dict[int, float | None]) -> dict[str, Any]:
    pairs = [(others[seed], mine[seed]) for seed in mine]
    values = [other / own for other, own in pairs if other is not None and own]
    return {**range_of(values), "seeds": len(values), "of": len(pairs)}


def throughput(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Training queries a second from the first refresh on, over those of the run without one of the same seed."""
    rates = {(result["mode"], result["seed"]): rate(result) for result in results}
    rows = []
    for mode in dict.fromkeys(result["mode"] for result in results):
        mine = [result for result in results if result["mode"] == mode]
        base = [rates[mode, r["seed"]] / rates["none", r["seed"]] for r in mine if ("none", r["seed"]) in rates]
        row = {
            "mode": mode,
            "queries_per_second": range_of([rates[mode, result["seed"]] for result in mine]),
            "relative": range_of(base),
            # A worker that takes longer than the run brings none, and costs little.
            "refreshes": range_of([len(result["extra"]["refreshes"]) for result in mine]),
            "waited": range_of([result["extra"]["seconds_refresh"] / _refreshing(result) for result in mine]),
        }
        busy = [result["extra"]["worker_busy"] for result in mine if "worker_busy" in result["extra"]]
        rows.append(row | ({"worker_busy": range_of(busy)} if busy else {}))
    return rows


def rate(result: Result) -> float:
    steps = len(result["seconds"]) - result["settings"]["first_refresh"]
    return result["settings"]["batch"] * steps / _refreshing(result)


def _refreshing(result: Result) -> float:
    """Seconds from the first refresh to the last step."""
    seconds: list[float] = result["seconds"]
    return seconds[-1] - seconds[result["settings"]["first_refresh"] - 1]


def quality(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Dev metrics of the last weights of each contestant, and how surely refreshed negatives are better than others.

    Tests are paired over queries, two-sided: Student's and Fisher's randomization for each seed, and both on each
    query's mean over seeds.
    """
    rows = []
    for mode in (name for name in QUALITY if any(result["mode"] == name for result in results)):
        mine = {r["seed"]: evaluation_of(r) for r in results if r["mode"] == mode}
        row: dict[str, Any] = {"mode": mode, "queries": next(iter(mine.values())).num_queries}
        for metric in METRICS:
            row[metric] = range_of([one[metric] for one in mine.values()])
            best = {r["seed"]: evaluation_of(r) for r in results if r["mode"] == "sync"}
            shared = sorted(mine.keys() & best.keys()) if mode != "sync" else []
            if shared:
                row[f"p {metric}"] = {
                    "seeds": {seed: compared(best[seed], mine[seed], metric) for seed in shared},
                    "all": compared(averaged([best[s] for s in shared]), averaged([mine[s] for s in shared]), metric),
                }
        rows.append(row)
    return rows


def evaluation_of(result: Result) -> Evaluation:
    per_query: dict[str, dict[str, float]] = result["per_query"]
    return Evaluation({m: float(np.mean(list(values.values()))) for m, values in per_query.items()}, per_query)


def averaged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Each query's mean over several evaluations."""
    first = evaluations[0]
    per_query = {
        metric: {query: float(np.mean([one.per_query[metric][query] for one in evaluations])) for query in values}
        for metric, values in first.per_query.items()
    }
    return Evaluation({m: float(np.mean(list(values.values()))) for m, values in per_query.items()}, per_query)


def compared(refreshed: Evaluation, other: Evaluation, metric: str) -> dict[str, float]:
    """Refreshed minus other, and two p values."""
    test = paired_significance(refreshed, other, metric)
    chance = paired_significance(refreshed, other, metric, test="randomization")
    return {"difference": test.difference, "t": test.p_value, "randomization": chance.p_value}


def range_of(values: Sequence[float]) -> dict[str, float | None]:
    """Median, least and most; None where there is nothing."""
    if not values:
        return {"median": None, "min": None, "max": None}
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
