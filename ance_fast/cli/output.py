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

from ance_fast.progress import plain_number


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
    """Rates of `what`, and of each stage its threads and their seconds, with the one that limits marked."""
    if not summary["stages"]:
        return
    seconds = f"{plain_number(summary['seconds'])} s"
    if summary[what]:
        rates = ", ".join(f"{plain_number(summary[f'{name}_per_s'])} {name}/s" for name in (what, "tokens"))
        title = f"{summary[what]:,} {what} in {seconds}: {rates}, padding 0 %; * limits"
    else:
        title = f"no new {what}, {seconds}; * limits"
    print_table(
        ("stage", "threads", "seconds, all threads", "each thread busy"),
        [
            (
                row["stage"],
                row["threads"],
                f"{row['seconds']:,.2f}",
                f"{row['share']:.1%}" + " *" * (row["stage"] == summary["limiting_stage"]),
            )
            for row in summary["stages"]
        ],
        title=title,
        err=True,
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
