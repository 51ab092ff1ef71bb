"""ance-fast demo"""

from __future__ import annotations

import json as jsonlib
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ance_fast.artifacts import write_json
from ance_fast.cli.output import print_json, print_table, program
from ance_fast.errors import ConfigError

COLUMNS = ("name", "nDCG@10", "RR@10", "R@100", "p_value", "seconds")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path("demo-run"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier demo there and run it again.")] = False,
    steps: Annotated[int, typer.Option(min=5, help="Optimizer steps of each trained row.")] = 150,
    passages: Annotated[int | None, typer.Option(min=100, help="Use only the first passages [all 10,033].")] = None,
    seed: Annotated[int, typer.Option()] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on the last line.")] = False,
) -> None:
    """Train ANCE beside its rivals on encyclopaedia text, then search the result. Minutes on two cores, no network.

    Example: ance-fast demo
    """
    from ance_fast.cli.demo.experiment import run_experiment
    from ance_fast.cli.demo.report import write_page

    if fresh:
        _remove(output)
    settings = {"steps": steps, "passages": passages, "seed": seed}
    note, finished = output / "demo.json", output / "results.json"
    if note.exists() and jsonlib.loads(note.read_text(encoding="utf-8")) != settings:
        raise ConfigError(f"{output}: holds a demo with other settings; add --fresh, or choose another --output")
    if not note.exists():
        if output.exists() and any(output.iterdir()):
            raise ConfigError(f"{output}: not empty and not a demo's folder; choose another --output")
        write_json(note, settings)
    if finished.exists():
        results: dict[str, Any] = jsonlib.loads(finished.read_text(encoding="utf-8"))
        typer.echo(f"{output} holds a finished demo; --fresh runs it again (make demo ARGS=--fresh).", err=True)
    else:
        results = run_experiment(output, steps=steps, passages=passages, seed=seed, device=device)
        results["search"] = f"{program()} search {shlex.quote(results['index'])} {shlex.quote(results['example'])}"
        results["report"] = str(output / "report.html")
        write_page(results, output / "report.html")
        write_json(finished, results)
    _show(results, err=json)
    if json:
        keys = ("rows", "encoder", "index", "report")
        print_json({key: results[key] for key in keys})


def _show(results: dict[str, Any], err: bool) -> None:
    ance = next(row for row in results["rows"] if row["key"] == "ance")
    above = [row["name"] for row in results["rows"] if row["nDCG@10"] > ance["nDCG@10"]]
    rows = [
        [*(row[name] for name in COLUMNS[:4]), _p(row["p_value"]), _seconds(row["seconds"])] for row in results["rows"]
    ]
    title = (
        f"{results['queries']:,} held-out queries; trained rows: {results['steps']} steps each, seed {results['seed']}"
    )
    print_table((*COLUMNS[:4], "p (ANCE)", "seconds"), rows, title=title, err=err)
    typer.echo(
        "p: ANCE against the row, paired t-test on nDCG@10. seconds: training, refreshes, encoding, measuring.", err=err
    )
    if above:
        typer.echo(f"above ANCE: {', '.join(above)}. Why, and what the rows show: docs/demo.md", err=err)
    speed = results["encoder"]
    typer.echo(f"encoder: {speed['passages_per_s']:,.0f} passages/s, {speed['tokens_per_s']:,.0f} tokens/s", err=err)
    typer.echo(f"report:  {results['report']}", err=err)
    typer.echo(f"search:  {results['search']}", err=err)
    typer.echo("         (a held-out query; without one it asks for queries until end of input)", err=err)


def _p(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}"


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _remove(folder: Path) -> None:
    if folder.exists():
        if not (folder / "demo.json").exists():
            raise ConfigError(f"{folder}: not a demo's folder, so --fresh does not remove it")
        # Renamed first: a kill half-way through must not leave a folder that is a demo's no longer.
        doomed = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
