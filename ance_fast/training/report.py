"""`report.html`: what a run measured, as one page with pictures, made from the run's own files.

It needs no network and runs no script. It can be made at any time: of a run that goes on or was killed it shows what
there is so far.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file
from ance_fast.charts import PAGE_STYLE, Series, bar_chart, data_table, line_chart, series_table, thinned
from ance_fast.errors import ArtifactError

Entry = dict[str, Any]
Figure = Callable[[list[Entry]], str]

SHOWN_SETTINGS = (
    "refresh",
    "refresh_every",
    "first_refresh",
    "max_staleness",
    "start",
    "sampler",
    "topk",
    "negatives_per_query",
    "loss",
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "seed",
)


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html from the run's logs and return where; `ArtifactError` if `folder` holds no run."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings: dict[str, Any] = config["settings"]
        begun = (folder / "config.json").stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: no training run (config.json: {error}); give the --output of a run") from error
    page = _page(folder.resolve().name, settings, read_log(folder / "metrics.jsonl"), finished=_finished(folder, begun))
    path = folder / "report.html"
    with atomic_file(path) as staging:
        staging.write_text(page, encoding="utf-8")
    return path


def read_log(path: Path) -> list[Entry]:
    """The entries of a JSON-lines log in order of their steps; a last line that is still being written is left out.

    Raises `ArtifactError` with file and line for any other line that is no JSON object with a step.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    entries = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            entry["step"] = int(entry["step"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                continue
            raise ArtifactError(f"{path}:{number}: not a line of a run's log ({error}); remove it") from error
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["step"])


def _finished(folder: Path, begun: float) -> bool:
    """Whether the last thing that a run writes is there, and not from one before it."""
    index = folder / "index" / "manifest.json"
    return index.exists() and index.stat().st_mtime >= begun


def _page(name: str, settings: dict[str, Any], entries: list[Entry], *, finished: bool) -> str:
    steps = max((entry["step"] for entry in entries), default=0)
    state = "finished" if finished else f"at step {steps:,} of {settings.get('max_steps', 0):,} when this was written"
    shown = [[key, settings[key]] for key in SHOWN_SETTINGS if settings.get(key) is not None]
    figures = "".join(figure(entries) for figure in FIGURES)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>
<title>{escape(name)}: training with refreshed negatives</title><style>{PAGE_STYLE}</style></head><body><main>
<h1>{escape(name)}</h1>
<p>Training, {escape(state)}. A step is an optimizer step. Lines of long runs are drawn through means of neighbouring
points.</p>
{figures or "<p>Nothing has been measured yet.</p>"}
{_generations(entries)}
<h2>Settings</h2>
{data_table("What the run was started with", ["setting", "value"], shown)}
</main></body></html>
"""


def _loss(entries: list[Entry]) -> str:
    fresh = [_series(entries, "loss_fresh", "new negatives"), _series(entries, "loss_stale", "negatives until then")]
    return _figure(
        "loss", "Loss", "Mean training loss of the steps since the line before.", [_series(entries, "loss", "loss")]
    ) + _figure(
        "fresh",
        "Loss on new and on old negatives",
        "At each refresh, the loss of the same queries, by the same weights, with negatives drawn from the new lists "
        "and from the ones in use until then. Where new ones are worth more, their loss is higher.",
        fresh,
        y_label="loss",
    )


def _dev(entries: list[Entry]) -> str:
    names = dict.fromkeys(key for entry in entries for key in entry if key.startswith("eval_"))
    series = [_series(entries, key, key.removeprefix("eval_")) for key in names]
    best = ""
    if series:
        first = series[0]
        step, value = max(first.points, key=lambda point: (point[1], -point[0]))
        best = f"Best {first.name}: {value:.4f} at step {step:,.0f}."
    return _figure("dev", "Dev queries", f"Measured at each refresh and at the end. {best}", series, y_label="value")


def _age(entries: list[Entry]) -> str:
    return _figure(
        "age",
        "Age of negatives",
        "Steps between the weights that chose a negative and those it was used with.",
        [
            _series(entries, "negative_age", "mean"),
            _series(entries, "negative_age_max", "oldest", maxima=True),
            _series(entries, "steps_behind", "lag of a swap"),
        ],
        y_label="steps",
    )


def _overlap(entries: list[Entry]) -> str:
    names = dict.fromkeys(key for entry in entries for key in entry if key.startswith("overlap@"))
    series = [_series(entries, key, key) for key in names]
    return _figure(
        "overlap",
        "What lists kept",
        "Share of a query's first negatives that were among the first of its list before.",
        [*series, _series(entries, "probe_overlap", "probe")],
        y_label="share",
    )


def _hardness(entries: list[Entry]) -> str:
    return _figure(
        "hardness",
        "Hardness",
        "Share of the negatives that score above the query's best positive.",
        [
            _series(entries, "harder_than_positive", "in use from then on"),
            _series(entries, "stale_harder_than_positive", "in use until then"),
        ],
        y_label="share",
    )


def _false(entries: list[Entry]) -> str:
    return _figure(
        "false",
        "False negatives",
        "Share of the negatives of batches that other judgements call relevant: of all of them, which is too low by "
        "what nobody judged, and of those that have a judgement.",
        [
            _series(entries, "false_negative_rate", "of all"),
            _series(entries, "false_negative_rate_judged", "of the judged"),
            _series(entries, "negatives_judged", "have a judgement"),
        ],
        y_label="share",
    )


def _filtered(entries: list[Entry]) -> str:
    names = dict.fromkeys(key for entry in entries for key in entry if key.startswith("filtered_"))
    return _figure(
        "filtered",
        "Candidates left out",
        "Share of the candidates that the sampler left out, by reason.",
        [_series(entries, key, key.removeprefix("filtered_")) for key in names],
        y_label="share",
    )


def _time(entries: list[Entry]) -> str:
    whole = _sum(entries, "seconds_interval")
    refresh, waited = _sum(entries, "seconds_refresh"), _sum(entries, "seconds_waited")
    parts = {
        "seconds_encode": "of refreshes: encoding, index",
        "seconds_mine": "of refreshes: mining",
        "seconds_measure": "of refreshes: measuring",
        "seconds_worker": "the worker, beside training",
    }
    bars = [("training", max(0.0, whole - refresh - waited)), ("refreshing, training waits", refresh)]
    bars += [("waiting for the worker", waited)]
    bars += [(label, _sum(entries, key)) for key, label in parts.items()]
    bars = [(label, seconds) for label, seconds in bars if seconds > 0]
    text = (
        "Seconds of the run up to the last line of its log. Training and waiting add up to the whole; what refreshes "
        "consist of is shown again by itself."
    )
    chart = bar_chart("time", "Where the time went", text, bars, unit="s")
    if not chart:
        return ""
    numbers = _folded(data_table("Where the time went", ["part", "seconds"], [list(bar) for bar in bars]))
    return _section("Where the time went", text, chart, numbers) + _figure(
        "worker",
        "The worker",
        "Share of the time that the worker was at work.",
        [_series(entries, "worker_busy", "busy")],
        y_label="share",
    )


FIGURES: tuple[Figure, ...] = (_loss, _dev, _age, _overlap, _hardness, _false, _filtered, _time)


def _generations(entries: list[Entry]) -> str:
    made = [entry for entry in entries if "generation" in entry]
    if not made:
        return ""
    keys = list(dict.fromkeys(key for entry in made for key in entry if key not in ("generation", "step", "epoch")))
    rows = [[entry["generation"], entry["step"], *(entry.get(key) for key in keys)] for entry in made]
    table = data_table("All that was measured at each generation", ["generation", "step", *keys], rows)
    return f"<h2>Generations</h2>{_folded(table)}"


def _figure(name: str, title: str, text: str, series: Iterable[Series], *, y_label: str = "") -> str:
    drawn = [one for one in series if one.points]
    chart = line_chart(name, title, text, drawn, x_label="step", y_label=y_label or title.lower())
    return _section(title, text, chart, _folded(series_table(title, "step", drawn))) if chart else ""


def _section(title: str, text: str, chart: str, numbers: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{chart}{numbers}</section>\n"


def _folded(table: str) -> str:
    return f"<details><summary>Numbers</summary>{table}</details>"


def _series(entries: list[Entry], key: str, name: str, *, maxima: bool = False) -> Series:
    points = [(entry["step"], entry[key]) for entry in entries if isinstance(entry.get(key), int | float)]
    return Series(name, thinned(points, maxima=maxima))


def _sum(entries: list[Entry], key: str) -> float:
    return math.fsum(entry[key] for entry in entries if isinstance(entry.get(key), int | float))
