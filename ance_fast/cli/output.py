"""Printing results: a table for people, one JSON document on the last line for programs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def program() -> str:
    """How this program was called, so that a printed command works when pasted."""
    name = sys.argv[0]
    return (
        shlex.quote(name) if Path(name).name == "ance-fast" else f"{shlex.quote(sys.executable)} -m ance_fast.cli.main"
    )


def print_json(value: Any) -> None:
    """One JSON document on one line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None, *, err: bool = False
) -> None:
    """A table whose first column is text and whose others are numbers or short text."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(stderr=err, soft_wrap=True).print(table)


def print_stages(summary: dict[str, Any], what: str = "passages") -> None:
    """Rates of `what`, and the seconds of each stage with the one that limits marked."""
    if not summary["stages"]:
        return
    print_table(
        ("stage", "seconds", "share of the time"),
        [
            (row["stage"], f"{row['seconds']:,.2f}", f"{row['share']:.1%}" + " *" * (row["stage"] == limit))
            for limit in [summary["limiting_stage"]]
            for row in summary["stages"]
        ],
        title=(
            f"{summary[what]:,} {what} in {summary['seconds']:,.1f} s: {summary[f'{what}_per_s']:,.0f} {what}/s, "
            f"{summary['tokens_per_s']:,.0f} tokens/s, padding 0 %; * limits"
        ),
        err=True,
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
