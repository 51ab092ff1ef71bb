"""The demo's picture and page."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file
from ance_fast.errors import MissingDependencyError


def draw(refreshes: list[dict[str, Any]], path: Path) -> None:
    """PNG: dev metric at each refresh, and how hard the negatives were just before and just after it."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("the picture needs matplotlib: pip install 'ance_fast[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [entry["step"] for entry in refreshes]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    left.plot(steps, [entry["eval_nDCG@10"] for entry in refreshes], marker="o", color="tab:blue")
    left.set(title="dev nDCG@10 at each refresh", xlabel="step", ylabel="nDCG@10")
    share = "harder_than_positive"
    right.plot(
        steps, [100 * entry[f"stale_{share}"] for entry in refreshes], "v--", color="tab:gray", label="before refresh"
    )
    right.plot(steps, [100 * entry[share] for entry in refreshes], "^-", color="tab:red", label="after refresh")
    right.set(title="negatives that outscore the positive", xlabel="step", ylabel="%")
    right.set_ylim(bottom=0)
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with atomic_file(path) as staging:
        figure.savefig(staging, format="png", dpi=120)
    pyplot.close(figure)


def write_page(results: dict[str, Any], picture: Path, path: Path) -> None:
    """One self-contained HTML file: the table, the picture, throughput, and how to search."""
    columns = ("nDCG@10", "RR@10", "R@100", "p_value", "seconds")
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    body = "".join(
        f"<tr><td>{html.escape(row['name'])}</td>" + "".join(f"<td>{_cell(row[c], c)}</td>" for c in columns) + "</tr>"
        for row in results["rows"]
    )
    image = base64.b64encode(picture.read_bytes()).decode()
    speed = results["encoder"]
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>ance_fast demo</title>
<style>body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}
td,th{{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}}
td:first-child{{text-align:left}}
img{{max-width:100%}}code{{background:#f3f3f3;padding:.1rem .3rem}}</style>
<h1>ANCE beside its rivals</h1>
<p>{results["queries"]:,} held-out queries; every trained row: {results["steps"]} steps, seed {results["seed"]}, the
same settings. p: paired two-sided t-test of ANCE against the row on nDCG@10.</p>
<table><tr>{head}</tr>{body}</table>
<h2>What a refresh does</h2>
<p><img alt="metric and negative hardness at each refresh" src="data:image/png;base64,{image}"></p>
<p>Encoder: {speed["passages_per_s"]:,.0f} passages/s, {speed["tokens_per_s"]:,.0f} tokens/s on this machine.</p>
<p>Search it: <code>{html.escape(results["search"])}</code></p></html>
"""
    with atomic_file(path) as staging:
        staging.write_text(page, encoding="utf-8")


def _cell(value: float | None, column: str) -> str:
    if value is None:
        return "-"
    if column == "p_value":
        return f"{value:.2g}"
    return f"{value:.0f}" if column == "seconds" else f"{value:.4f}"
