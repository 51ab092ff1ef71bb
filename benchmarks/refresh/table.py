"""The report as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.refresh.analysis import range_of
from benchmarks.refresh.bench import METRICS
from benchmarks.refresh.settings import LABELS, PEER

Part = dict[str, Any]
RATES = {"queries_per_second": ".1f", "relative": ".2f", "refreshes": ".0f", "waited": ".1%"}


def markdown(report: Part) -> str:
    """Everything in `report`, a section for each data set."""
    system, settings = report["system"], report["settings"]
    source = system["source"]
    gpu = f"; {system['nvidia_smi']}" if system["nvidia_smi"] and settings["device"] != "cpu" else ""
    lines = [
        "# Refreshing negatives",
        "",
        f"{system['cpu']['model']}, {settings['threads']} threads{gpu}; torch {system['versions']['torch']}, "
        f"transformers {system['versions']['transformers']}, {PEER} {system[PEER]}; {system['date']}; commit "
        f"{source['commit']}{' and local changes' if source['dirty'] else ''}.",
        "",
        f"{settings['layers']} layers of {settings['model']}, {settings['steps']} steps of {settings['batch']} queries "
        f"with one negative each of the {settings['topk']} best, {settings['max_length']} tokens; BM25 negatives until "
        f"step {settings['steps'] // 4}, refreshed every {settings['steps'] // 4} steps. Dev queries are measured by "
        "copies of the weights after the run, which no clock counts. Cells: median over seeds (least to most).",
    ]
    for name, data in report["data"].items():
        about = data["about"]
        lines += [
            "",
            f"## {name}: {about['passages']:,} passages, {about['train_queries']:,} train and {about['dev_queries']:,} "
            "dev queries",
            "",
            f"{data['runs']} runs; load of the machine when they began, median (least to most): "
            f"{_range(data['load'], '.1f')}.",
        ]
        for key, section in SECTIONS.items():
            if key in data:
                lines += ["", *section(data)]
    return "\n".join([*lines, ""])


def time_section(data: Part) -> list[str]:
    lines = [f"**Time to a dev {METRICS[0]}**, seconds from the texts; before training it is {_start(data)}.", ""]
    rows = data["time_to_quality"]
    modes = list(rows[0]["seconds"])
    head = " | ".join(LABELS[mode] for mode in modes)
    lines += [f"| target | {head} |", f"| --- |{' ---: |' * len(modes)}"]
    for row in rows:
        values = _range(_spread(row["values"].values()), ".3f")
        cells = [_range(_spread(seconds.values()), ".1f") for seconds in row["seconds"].values()]
        lines.append(f"| {row['target']}: {values} | {' | '.join(cells)} |")
    for other in rows[0]["faster"]:
        lines += ["", f"Seconds of {LABELS[other]} over those of the row (above 1 the row is faster):", ""]
        own = [mode for mode in modes if mode != other]
        lines += [f"| target | {' | '.join(LABELS[mode] for mode in own)} |", f"| --- |{' ---: |' * len(own)}"]
        for row in rows:
            cells = [_ratio(row["faster"][other][mode]) for mode in own]
            lines.append(f"| {row['target']} | {' | '.join(cells)} |")
    lines += ["", f"Every curve, {METRICS[0]} at seconds:", ""]
    for run in data["curves"]:
        points = ", ".join(f"{point[METRICS[0]]:.3f} at {point['seconds']:.0f}" for point in run["curve"])
        lines.append(f"- {LABELS[run['mode']]}, seed {run['seed']}: {points}")
    return lines


def throughput_section(data: Part) -> list[str]:
    lines = [
        "**Throughput** from the first refresh on, refreshing included; waited: share of that time that training stood "
        "still for negatives.",
        "",
        "| contestant | queries/s | over no refresh | refreshes | waited | worker busy |",
        "| --- |" + " ---: |" * 5,
    ]
    for row in data["throughput"]:
        busy = _range(row["worker_busy"], ".0%") if "worker_busy" in row else "-"
        cells = [_range(row[key], form) for key, form in RATES.items()]
        lines.append(f"| {LABELS[row['mode']]} | {' | '.join(cells)} | {busy} |")
    return lines


def overhead_section(data: Part) -> list[str]:
    part = data["rolling_overhead"]
    seconds = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in part["seconds"].items())
    return [
        f"**Rolling**, {part['slice']} passages a slice, {part['pairs']} pairs of steps, median (20th to 80th "
        f"percentile): a step that refreshes over a plain step and the slice encoded alone "
        f"{_percentiles('step', part)}; what refreshing adds over the slice alone {_percentiles('cost', part)}. "
        f"Medians: {seconds}.",
    ]


def quality_section(data: Part) -> list[str]:
    rows = data["quality"]
    lines = [
        f"**Quality** of the last weights on {rows[0]['queries']:,} dev queries, pairwise loss. p: refreshed against "
        "the row, paired over queries, two-sided t-test (randomization test), each query's mean over seeds.",
        "",
        f"| negatives | {' | '.join(METRICS)} | {' | '.join(f'refreshed better by, p on {m}' for m in METRICS)} |",
        "| --- |" + " ---: |" * (2 * len(METRICS)),
    ]
    for row in rows:
        label = "refreshed" if row["mode"] == "sync" else LABELS[row["mode"]]
        cells = [_range(row[metric], ".4f") for metric in METRICS]
        for metric in METRICS:
            test = row.get(f"p {metric}")
            cells.append(_tested(test["all"]) if test else "-")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines.append("")
    for row in rows:
        for metric in METRICS:
            for seed, test in row.get(f"p {metric}", {"seeds": {}})["seeds"].items():
                lines.append(f"- {metric}, seed {seed}, refreshed against {LABELS[row['mode']]}: {_tested(test)}")
    return lines


SECTIONS = {
    "time_to_quality": time_section,
    "throughput": throughput_section,
    "rolling_overhead": overhead_section,
    "quality": quality_section,
}


def _start(data: Part) -> str:
    return f"{data['start'][METRICS[0]]:.3f}"


def _spread(values: Any) -> Part:
    """Of the seeds that got there; how many did not is said."""
    every = list(values)
    reached = [value for value in every if value is not None]
    return {**range_of(reached), "seeds": len(reached), "of": len(every)}


def _range(part: Part, form: str) -> str:
    if part["median"] is None:
        return "not reached" if part.get("of") else "-"
    text = f"{part['median']:{form}} ({part['min']:{form}} to {part['max']:{form}})"
    return text if part.get("seeds", 1) == part.get("of", 1) else f"{text}, {part['seeds']} of {part['of']} seeds"


def _ratio(part: Part) -> str:
    return _range(part, ".2f")


def _percentiles(kind: str, part: Part) -> str:
    ratio = part[f"{kind}_ratio"]
    return f"{ratio['p50']:.3f} ({ratio['p20']:.3f} to {ratio['p80']:.3f})"


def _tested(test: dict[str, float]) -> str:
    return f"{test['difference']:+.4f}, p {test['t']:.2g} ({test['randomization']:.2g})"
