"""The ops beside the alternatives: time, memory and error of each, in one process.

    python -m benchmarks.run --suite ops --device cpu --out DIR [--rounds N] [--threads 1] [--shapes small|full]

Each round times every contestant once, in an order that alternates, so that what the machine does meanwhile touches all
of them; ratios are taken within a round, and a slow rival sits out some rounds. Every result is compared with float64
before it is timed. On a CPU the peak memory of the contrastive loss is also measured over three batches and held
against a formula. DIR receives system.json, results.jsonl, results.md and roofline.png; `python -m benchmarks.compare A
B` compares two such folders. A contestant that cannot run is named with the reason; an error of an op of this package
ends the run.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.ops import measure
from benchmarks.ops.cases import GROUPS, cases, memory_fits
from benchmarks.ops.measure import Clock, CpuClock, CudaClock, CudaHostClock
from benchmarks.ops.providers import BASELINE, Provider, providers
from benchmarks.ops.suite import SuiteError, fit_memory, run_case

ROUNDS = {"cpu": 11, "cuda": 30}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    clock: Clock = CpuClock(options.threads) if options.device == "cpu" else CudaClock()
    host: Clock = clock if options.device == "cpu" else CudaHostClock()
    chosen = cases(options.device, options.shapes, tuple(options.only))
    dtypes = list(dict.fromkeys([torch.bfloat16] * (options.device == "cuda") + [case.dtype for case in chosen]))
    limits = measure.ceilings(options.device, dtypes, clock, options.shapes == "small")
    system = results.describe_system(arguments, options.threads, limits)
    rows: list[results.Row] = []
    try:
        for number, case in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {case.op} {case.shape} {case.precision}", file=sys.stderr, flush=True)
            timer = host if case.group == "overhead" else clock
            rows += run_case(case, contestants(options), options.rounds, timer, limits)
            results.write(options.out, system, rows)
        if options.device == "cpu" and "contrastive" in options.only:
            rows += memory_rows(options)
            results.write(options.out, system, rows)
    except SuiteError as error:
        traceback.print_exc()
        sys.exit(f"error: {error}")
    finally:
        if rows:
            results.write_roofline(options.out / "roofline.png", system, rows)
    print((options.out / "results.md").read_text(encoding="utf-8"))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.run --suite ops", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the results")
    parser.add_argument("--rounds", type=int, help=f"rounds of timing [{ROUNDS['cpu']} on a CPU, {ROUNDS['cuda']}]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", choices=["small", "full"], default="full", help="small: a trial of the machinery")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--providers", nargs="+", help=f"these alone, beside {BASELINE} [all]")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or ROUNDS[options.device]
    known = [provider.name for provider in providers()]
    unknown = [name for name in options.providers or [] if name not in known]
    if unknown:
        parser.error(f"unknown provider {unknown[0]!r}; there are: {', '.join(known)}")
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return options


def contestants(options: argparse.Namespace) -> list[Provider]:
    wanted = options.providers
    return [p for p in providers() if wanted is None or p.name == BASELINE or p.name in wanted]


def memory_rows(options: argparse.Namespace) -> list[results.Row]:
    wanted = [provider for provider in contestants(options) if provider.ours or provider.name == BASELINE]
    rows = []
    for fit in memory_fits(options.shapes):
        print(f"memory of the contrastive loss, {fit.shape}", file=sys.stderr, flush=True)
        for row in fit_memory(fit, wanted):
            print(results.memory_verdict(row), file=sys.stderr, flush=True)
            rows.append(row)
    return rows
