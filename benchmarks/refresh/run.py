"""Refresh modes beside each other and beside sentence-transformers' loop: time to quality, throughput, quality.

    python -m benchmarks.run --suite refresh --out DIR [--data medquad debian] [--parts PART ...] [--resume]

Every contestant trains from the same weights on the same passages and queries for as many steps; contestants run one
after the other, in another order for each seed. Each result is written to DIR when it is there, so that a suite that
was cut off goes on with `--resume`. DIR receives refresh.json and refresh.md. Parts:

- time-to-quality: seconds until dev queries reach a given RR@10, with negatives refreshed by each mode, never, and by
  the loop mine -> new trainer -> train;
- throughput: training queries a second of each mode over those of a run without refresh, from the same runs;
- rolling-overhead: what a rolling refresh adds to a step, beside encoding its slice alone;
- quality: refreshed negatives, negatives mined once, static BM25 negatives, with the paper's pairwise loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file, write_json
from ance_fast.cli.demo.data import model_folder
from ance_fast.ops.dispatch import dispatch_counts
from benchmarks import results
from benchmarks.refresh.analysis import QUALITY, quality, range_of, throughput, time_to_quality
from benchmarks.refresh.bench import METRICS, Bench, read_json
from benchmarks.refresh.contestants import train
from benchmarks.refresh.data import BESIDE, default_data, source_of
from benchmarks.refresh.overhead import measure_overhead
from benchmarks.refresh.settings import PEER, Plan, Settings
from benchmarks.refresh.table import markdown

PARTS = ("time-to-quality", "throughput", "rolling-overhead", "quality")
MODES = ("none", "sync", "rolling", "async", PEER)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    settings = settings_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for data in options.data:
        name = Path(data).name
        folder = options.out / name
        source = source_of(data, options.out / "demo-data")
        if source is None:
            sys.exit(f"error: {data}: no BEIR folder with splits train and dev, nor one of that name in {BESIDE}")
        refuse_other_results(folder, settings, resume=options.resume)
        report = report or described(arguments, options, settings)
        bench = Bench(source, settings, folder / "work")
        report["data"][name] = measure(bench, folder, options)
        report["system"]["dispatch"] = dispatch_counts()
        write_report(options.out, report)
        if not options.keep:
            shutil.rmtree(folder / "work", ignore_errors=True)  # there is none where nothing was missing
    print(json.dumps({"report": str(options.out / "refresh.json"), "data": list(report["data"])}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run --suite refresh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", help="medquad, debian, demo or BEIR folders with splits train and dev")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=16, help="queries a step [%(default)s]")
    parser.add_argument("--max-length", type=int, default=48, help="tokens [%(default)s]")
    parser.add_argument("--layers", type=int, default=2, help="of the model that are kept [%(default)s]")
    parser.add_argument("--topk", type=int, default=20, help="passages that negatives are drawn from [%(default)s]")
    parser.add_argument("--points", type=int, default=4, help="measurements of dev on the way [%(default)s]")
    parser.add_argument("--pairs", type=int, default=40, help="of steps, for rolling-overhead [%(default)s]")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--quality-learning-rate", type=float, default=4e-4)
    parser.add_argument("--model", default=None, help="checkpoint [the demo's all-MiniLM-L6-v2]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--refresh-threads", type=int, help="of them for the worker of async [the library's choice]")
    parser.add_argument("--resume", action="store_true", help="keep the results that DIR has already")
    parser.add_argument("--keep", action="store_true", help="keep the texts and the first weights too")
    options = parser.parse_args(arguments)
    options.data = listed(options.data or default_data())
    options.parts, options.modes = listed(options.parts), listed(options.modes)
    for name, choices in (("parts", PARTS), ("modes", MODES)):
        for wrong in sorted(set(getattr(options, name)) - set(choices)):
            parser.error(f"--{name}: {wrong!r} is none of {', '.join(choices)}")
    try:
        options.seeds = [int(seed) for seed in listed(options.seeds)]
    except ValueError as error:
        parser.error(f"--seeds: {error}")
    if "time-to-quality" in options.parts and "sync" not in options.modes:
        parser.error("time-to-quality is measured against sync, which --modes leaves out")
    if "throughput" in options.parts and "none" not in options.modes:
        parser.error("throughput is measured against a run without refresh; add none to --modes")
    for name in ("passages", "batch", "max_length", "layers", "topk", "pairs", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if options.steps < 4:
        parser.error("--steps must be at least 4: a quarter of them lies between refreshes")
    if not 1 <= options.points <= options.steps:
        parser.error("--points must be between 1 and --steps")
    return options


def listed(values: Sequence[str]) -> list[str]:
    """Each value once, whether they were given apart or with commas."""
    return list(dict.fromkeys(part for value in values for part in value.split(",") if part))


def model_name(options: argparse.Namespace) -> str:
    return Path(options.model).name if options.model else "all-MiniLM-L6-v2"


def settings_of(options: argparse.Namespace) -> Settings:
    values = {**vars(options), "model": options.model or str(model_folder())}
    return Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})


def described(arguments: Sequence[str] | None, options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """A report without results: the machine, the versions, the settings."""
    command = list(arguments if arguments is not None else sys.argv[1:])
    system = results.describe_system(["--suite", "refresh", *command], settings.threads, {})
    return {
        "system": {**system, PEER: importlib.metadata.version(PEER)},
        "settings": {**dataclasses.asdict(settings), "model": model_name(options)},
        "data": {},
    }


def refuse_other_results(folder: Path, settings: Settings, *, resume: bool) -> None:
    """Results of one folder are of the same settings, or comparing them would mean nothing."""
    path, now = folder / "settings.json", json.loads(json.dumps(dataclasses.asdict(settings)))
    then = read_json(path)
    if then and not resume:
        sys.exit(f"error: {folder} holds results; --resume keeps them and goes on, or choose another --out")
    different = [f"{name}: {then[name]!r} then, {now.get(name)!r} now" for name in then if then[name] != now.get(name)]
    if different:
        sys.exit(f"error: {folder} holds results of other settings ({'; '.join(different)}); choose another --out")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def plans(options: argparse.Namespace) -> Iterator[Plan]:
    """The runs that the parts need, in order; which contestant comes first goes round with the seeds."""
    wanted: list[tuple[str, str]] = []
    if "time-to-quality" in options.parts or "throughput" in options.parts:
        without_peer = "time-to-quality" not in options.parts
        wanted += [(mode, "contrastive") for mode in options.modes if not (without_peer and mode == PEER)]
    if "quality" in options.parts:
        wanted += [(mode, "pairwise") for mode in QUALITY]
    for place, seed in enumerate(options.seeds):
        turn = place % max(1, len(wanted))
        for mode, loss in wanted[turn:] + wanted[:turn]:
            yield Plan(mode, loss, seed)


def measure(bench: Bench, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing in `folder` and sum it up."""
    todo = [plan for plan in plans(options) if not (folder / "runs" / f"{plan.name}.json").exists()]
    start = measured_start(bench, folder)
    if todo:
        warm_up(bench, todo)
    for number, plan in enumerate(todo, 1):
        say(f"{folder.name}: {plan.name} ({number} of {len(todo)})")
        write_json(folder / "runs" / f"{plan.name}.json", result_of(bench, plan))
        gc.collect()
    overhead = folder / "overhead.json"
    if "rolling-overhead" in options.parts and not overhead.exists():
        say(f"{folder.name}: rolling overhead")
        write_json(overhead, measure_overhead(bench, pairs=options.pairs))
    return summed_up(folder, start, options)


def summed_up(folder: Path, start: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of the parts asked for, from the files of `folder`."""
    found = [read_json(folder / "runs" / f"{plan.name}.json") for plan in plans(options)]
    contrastive = [result for result in found if result["loss"] == "contrastive"]
    load = range_of([result["load_average"][0] for result in found])
    report: dict[str, Any] = {"about": start["about"], "start": start["metrics"], "runs": len(found), "load": load}
    if "time-to-quality" in options.parts:
        report["time_to_quality"] = time_to_quality(contrastive, start["metrics"][METRICS[0]])
        report["curves"] = [{key: result[key] for key in ("mode", "seed", "curve")} for result in contrastive]
    if "throughput" in options.parts:
        report["throughput"] = throughput(contrastive)
    if "rolling-overhead" in options.parts:
        report["rolling_overhead"] = read_json(folder / "overhead.json")
    if "quality" in options.parts:
        report["quality"] = quality([result for result in found if result["loss"] == "pairwise"])
    return report


def measured_start(bench: Bench, folder: Path) -> dict[str, Any]:
    """What dev queries find before training; made once."""
    path = folder / "start.json"
    if not path.exists():
        write_json(path, {"about": bench.describe(), "metrics": dict(bench.measure(None))})
    return read_json(path)


def warm_up(bench: Bench, todo: Sequence[Plan]) -> None:
    """Import and touch everything once on few passages, so that the first contestant does not pay for all."""
    say("warm-up")
    small = dataclasses.replace(bench.settings, passages=200, steps=4)
    folder = bench.folder / "warm-up"
    for mode in dict.fromkeys("sync" if plan.mode != PEER else PEER for plan in todo):
        train(Bench(bench.source, small, folder), Plan(mode, "contrastive", 0))
    shutil.rmtree(folder)


def result_of(bench: Bench, plan: Plan) -> dict[str, Any]:
    """Train, then measure: what the file of a run holds."""
    load, trained = os.getloadavg(), train(bench, plan)
    points: list[dict[str, float]] = []
    # Of the quality runs only the end counts.
    for step, weights in trained.weights if plan.loss == "contrastive" else trained.weights[-1:]:
        last = bench.measure(weights)
        points.append({"step": step, "seconds": trained.seconds[step - 1], **last})
    return {
        **dataclasses.asdict(plan),
        "settings": {"batch": bench.settings.batch, "first_refresh": bench.settings.interval},
        "seconds": trained.seconds,
        "curve": points,
        "per_query": last.per_query,
        "extra": trained.extra,
        "load_average": load,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_report(folder: Path, report: dict[str, Any]) -> None:
    write_json(folder / "refresh.json", report)
    with atomic_file(folder / "refresh.md") as staging:
        staging.write_text(markdown(report), encoding="utf-8")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
