"""Runs the cases: checks every contestant against float64, measures its memory, then times all of them in turns."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ance_fast.ops.dispatch import dispatch_counts, reset_dispatch_counts
from benchmarks.ops import measure
from benchmarks.ops.cases import FIT_CHUNK_ROWS, Case, MemoryFit
from benchmarks.ops.measure import Clock
from benchmarks.ops.problems import Problem
from benchmarks.ops.providers import BASELINE, Attempt, Provider, step_of

Row = dict[str, Any]
Step = Callable[[], tuple[Tensor, ...]]

# Largest error of ours, relative to the largest element, before the run stops: a fast wrong kernel must not be timed.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Shorter samples would measure the clock and the scheduler.
SAMPLE_SECONDS = 0.02
# A rival whose rounds would take longer together is timed in fewer, though never fewer than FEWEST_ROUNDS.
RIVAL_SECONDS = 6.0
FEWEST_ROUNDS = 3
OVERHEAD_CALLS = 50


class SuiteError(Exception):
    """An implementation of ours failed or is wrong."""


@dataclass
class Contest:
    """One provider on one case. `samples`: (seconds that count, wall seconds) of the rounds it took part in."""

    provider: Provider
    row: Row
    step: Step | None = None
    samples: dict[int, tuple[float, float]] = field(default_factory=dict)

    def drop(self, status: str, reason: str) -> None:
        self.row |= {"status": status, "reason": reason}
        self.step = None


def run_case(
    case: Case, contestants: list[Provider], rounds: int, clock: Clock, limits: dict[str, dict[str, float]]
) -> list[Row]:
    """A row for each provider that has the op. Raises SuiteError for an error of ours."""
    problem, contests = _checked(case, contestants)
    for contest, step in list(_running(contests)):
        contest.row["peak_bytes"] = _attempt(contest, partial(measure.peak_bytes, step, case.device))
    rounds = min(rounds, case.most_rounds or rounds)
    _time(case, contests, rounds, clock)
    for contest in contests:
        if contest.step is not None:
            _summarize(contest, contests[0], problem, case, clock, limits)
    rows = [contest.row for contest in contests]
    del contests, problem
    _release()
    return rows


def check_case(case: Case, contestants: list[Provider]) -> list[Row]:
    """The rows of `run_case` without memory and times: errors against float64 alone."""
    return [contest.row for contest in _checked(case, contestants)[1]]


def fit_memory(fit: MemoryFit, contestants: list[Provider]) -> list[Row]:
    """Peak memory of the contrastive loss over several batches, whether the formula allows it, and the bytes that a row
    of the batch adds."""
    rows = []
    for provider in contestants:
        points = []
        for batch in fit.batches:
            case = fit.case(batch)
            step = step_of(provider.attempt(case.make(), case), None)
            step()
            peak, allowed = measure.cpu_peak(step), fit.formula(batch)
            within = None if peak is None else peak <= allowed
            points.append({"batch": batch, "bytes": peak, "formula_bytes": allowed, "within": within})
        rows.append(_memory_row(fit, provider, points))
    return rows


def _memory_row(fit: MemoryFit, provider: Provider, points: list[dict[str, Any]]) -> Row:
    known = all(point["bytes"] is not None for point in points)
    slope = statistics.linear_regression(fit.batches, [p["bytes"] for p in points]).slope if known else None
    return {
        "group": "contrastive",
        "op": "contrastive memory",
        "shape": fit.shape,
        "dtype": "float32",
        "device": "cpu",
        "provider": provider.name,
        "note": provider.note,
        "status": "ok" if known else "not run",
        "reason": None if known else "/proc/self/clear_refs does not work here",
        "chunk_rows": FIT_CHUNK_ROWS,
        "points": points,
        "within": all(point["within"] for point in points) if known else None,
        "bytes_per_row": slope,
        "formula_bytes_per_row": 1.2 * fit.dim * 4,
    }


def _blank(case: Case, provider: Provider, problem: Problem) -> Row:
    return {
        "group": case.group,
        "op": case.op,
        "shape": case.shape,
        "dtype": case.precision,
        "device": case.device,
        "provider": provider.name,
        "note": provider.note,
        "status": "ok",
        "reason": None,
        "dispatch": None,
        "flops": problem.flops,
        "bytes": problem.bytes,
        "errors": None,
        "peak_bytes": None,
    }


def _running(contests: list[Contest]) -> Iterator[tuple[Contest, Step]]:
    return ((contest, contest.step) for contest in contests if contest.step is not None)


def _attempt(contest: Contest, action: Callable[[], Any]) -> Any:
    """What `action` returns. A failure is noted in the row and gives None; for a provider of ours it is raised."""
    try:
        return action()
    except Exception as error:  # a rival may fail in any way, and the others still run
        if contest.provider.ours:
            shape = f"{contest.row['op']} {contest.row['shape']} {contest.row['dtype']}"
            raise SuiteError(f"{contest.provider.name} on {shape}: {_first_line(error)}") from error
        contest.drop("failed", _first_line(error))
    # Outside the handler, where the traceback no longer keeps the tensors of the failed call alive.
    _release()
    return None


def _first_line(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:300]


def _release() -> None:
    """What nobody refers to any more goes back to the device: the next contestant may need all of it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _checked(case: Case, contestants: list[Provider]) -> tuple[Problem, list[Contest]]:
    """The contest of every provider that has the op, after its first call, which also compiles and warms up."""
    torch.compiler.reset()  # else the shapes of earlier cases use up its recompilations, and it silently runs eager
    problem = case.make()
    contests = [
        Contest(provider, _blank(case, provider, problem)) for provider in contestants if case.op in provider.ops
    ]
    exact = problem.exact() if case.checked else None
    for contest in contests:
        reason = contest.provider.absent(case, problem)
        if reason is not None:
            contest.drop("not run", reason)
            continue
        _attempt(contest, partial(_prepare, contest, case, problem, exact))
    return problem, contests


def _prepare(contest: Contest, case: Case, problem: Problem, exact: tuple[Tensor, ...] | None) -> None:
    attempt = contest.provider.attempt(problem, case)
    step = step_of(attempt, problem.upstream)
    reset_dispatch_counts()
    results = step()
    contest.row["dispatch"] = dispatch_counts()
    if exact is not None:
        contest.row["errors"] = errors = _errors(results, exact, attempt)
        worst = max(errors.values())
        if contest.provider.ours and not worst <= TOLERANCES[case.dtype]:
            raise ValueError(f"is off by {worst:.1e} of the largest element (allowed {TOLERANCES[case.dtype]:.0e})")
    contest.step = step


def _errors(results: tuple[Tensor, ...], exact: tuple[Tensor, ...], attempt: Attempt) -> dict[str, float]:
    """Largest absolute difference over the largest element, of the result and over all gradients; infinite for NaN."""
    out, *gradients = results
    if gradients:
        gradients[0] = attempt.packed(gradients[0])
    found = {"result": _relative(out, exact[0])}
    if gradients:
        found["gradients"] = max(_relative(got, want) for got, want in zip(gradients, exact[1:], strict=True))
    return found


def _relative(got: Tensor, want: Tensor) -> float:
    difference = float((got.double() - want).abs().max()) / max(float(want.abs().max()), 1e-30)
    return difference if math.isfinite(difference) else math.inf


def _time(case: Case, contests: list[Contest], rounds: int, clock: Clock) -> None:
    repeats = OVERHEAD_CALLS if case.group == "overhead" else _repeats(case, contests, clock)
    planned = {}
    for contest, step in list(_running(contests)):  # a warm-up, whose time tells how many rounds there will be
        sample = _attempt(contest, partial(clock.sample, step, repeats))
        if sample is not None:
            planned[contest.provider.name] = _rounds(contest.provider, rounds, sample[1] * repeats)
    for number in range(rounds):
        for contest, step in list(_running(contests))[:: -1 if number % 2 else 1]:
            if not _takes_part(number, planned[contest.provider.name], rounds):
                continue
            sample = _attempt(contest, partial(clock.sample, step, repeats))
            if sample is not None:
                contest.samples[number] = sample
    for contest, _ in _running(contests):
        contest.row |= {"rounds": len(contest.samples), "repeats": repeats}


def _rounds(provider: Provider, rounds: int, seconds: float) -> int:
    """Rounds of a contestant whose sample takes so long. What ratios are taken of has all."""
    if provider.ours or provider.name == BASELINE:
        return rounds
    return min(rounds, max(FEWEST_ROUNDS, int(RIVAL_SECONDS / max(seconds, 1e-9))))


def _takes_part(number: int, planned: int, rounds: int) -> bool:
    """Spreads the planned rounds evenly over all."""
    return number * planned // rounds != (number - 1) * planned // rounds


def _repeats(case: Case, contests: list[Contest], clock: Clock) -> int:
    """Calls a sample, the same for all contestants. On a GPU one: its caches are flushed before each."""
    running = [step for _, step in _running(contests)]
    if case.device == "cuda" or not running:
        return 1
    seconds = clock.sample(running[0], 1)[0]
    return min(100, max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9))))


def _summarize(
    contest: Contest, baseline: Contest, problem: Problem, case: Case, clock: Clock, limits: dict[str, dict[str, float]]
) -> None:
    samples = contest.samples.values()
    counted = [counts for counts, _ in samples]
    seconds = statistics.median(counted)
    contest.row |= {
        "clock": clock.name,
        "ms": _spread([1e3 * value for value in counted]),
        "wall_ms": _spread([1e3 * wall for _, wall in samples]),
        "ratio": _ratio(contest, baseline),
    }
    if case.group == "overhead":
        return
    compute = problem.flops / limits[case.precision]["per_second"]
    memory = problem.bytes / limits["copy"]["per_second"]
    contest.row |= {
        "tflops": problem.flops / seconds / 1e12,
        "gbps": problem.bytes / seconds / 1e9,
        "limit": "compute" if compute > memory else "memory",
        "of_ceiling": max(compute, memory) / seconds,
    }


def _ratio(contest: Contest, baseline: Contest) -> dict[str, float] | None:
    """The baseline's time over this one's, within each round of this one: above 1 is faster."""
    if baseline.provider.name != BASELINE or baseline.step is None:
        return None
    return _spread([baseline.samples[number][0] / own for number, (own, _) in contest.samples.items()])


def _spread(values: list[float]) -> dict[str, float]:
    """20th, 50th and 80th percentile, between neighbours where none falls on a sample."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8)}
