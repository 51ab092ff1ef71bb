"""The demo's page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file
from ance_fast.charts import PAGE_STYLE, Series, line_chart, series_table

COLUMNS = ("nDCG@10", "RR@10", "R@100", "p_value", "seconds")


def write_page(results: dict[str, Any], path: Path) -> None:
    """One self-contained HTML file: the table, pictures, throughput, and how to search."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("", *COLUMNS))
    body = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th>'
        + "".join(f"<td>{_cell(row[column], column)}</td>" for column in COLUMNS)
        + "</tr>"
        for row in results["rows"]
    )
    speed = results["encoder"]
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>ance_fast demo</title><style>{PAGE_STYLE}</style></head><body><main>
<h1>ANCE beside its rivals</h1>
<p>{results["queries"]:,} held-out queries; every trained row: {results["steps"]} steps, seed {results["seed"]}, the
same settings. p: paired two-sided t-test of ANCE against the row on nDCG@10.</p>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>
<h2>What a refresh does</h2>
{_pictures(results["refreshes"])}
<p>Encoder: {speed["passages_per_s"]:,.0f} passages/s, {speed["tokens_per_s"]:,.0f} tokens/s on this machine.</p>
<p>Search it: <code>{escape(results["search"])}</code></p></main></body></html>
"""
    with atomic_file(path) as staging:
        staging.write_text(page, encoding="utf-8")


def _pictures(refreshes: list[dict[str, Any]]) -> str:
    """Dev metric at each refresh, and how hard the negatives were just before and just after it."""
    dev = [_series(refreshes, "eval_nDCG@10", "nDCG@10")]
    hardness = [
        _series(refreshes, "stale_harder_than_positive", "before the refresh"),
        _series(refreshes, "harder_than_positive", "after it"),
    ]
    parts = []
    for name, title, series in (
        ("dev", "Dev nDCG@10 at each refresh of ANCE", dev),
        ("hardness", "Share of the negatives that outscore the positive", hardness),
    ):
        chart = line_chart(name, title, f"{title}.", series, x_label="step", y_label=title.split()[0].lower())
        numbers = series_table(title, "step", series)
        parts.append(f"<h3>{title}</h3>{chart}<details><summary>Numbers</summary>{numbers}</details>")
    return "".join(parts)


def _series(refreshes: list[dict[str, Any]], key: str, name: str) -> Series:
    return Series(name, [(entry["step"], entry[key]) for entry in refreshes])


def _cell(value: float | None, column: str) -> str:
    if value is None:
        return "-"
    if column == "p_value":
        return f"{value:.2g}"
    return f"{value:.0f}" if column == "seconds" else f"{value:.4f}"
