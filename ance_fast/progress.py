"""Progress of long work on standard error: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

LOG_INTERVAL_SECONDS = 30.0


class Advance(Protocol):
    """Advances a bar by `count`; `note`, where given, is shown beside the rate.

    `found`: what was there already. It counts as done, but for no rate.
    """

    def __call__(self, count: int, note: str = "", *, found: bool = False) -> None: ...


def plain_number(value: float) -> str:
    """Three digits of a number, and all before its point: 1,234, 53.1, 0.534; whole ones as they are, no exponents."""
    if value == 0 or not math.isfinite(value) or value == round(value):
        return f"{value:,.0f}"
    # The exponent of the rounded value: 9.999 is 10.0, not 10.00.
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{max(0, 2 - exponent)}f}"


@functools.cache
def stderr_console() -> Console:
    """The one console on standard error: bars within bars and log lines above them need to share it."""
    return Console(file=sys.stderr)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show `title` with count, rate in `unit`/s, time taken and time left; yields a function that advances by n."""
    with _bar(title, total, unit) if stderr_console().is_terminal else _lines(title, total, unit) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console()) as bar:
        bar.add_task(title, total=total, count="", rate="")
        (task,) = bar.tasks

        def advance(count: int, note: str = "", *, found: bool = False) -> None:
            if found:
                task.completed += count  # past the bar, which would take it for speed
            else:
                bar.advance(task.id, count)
            rate = [f"{plain_number(task.speed)} {unit}/s"] if task.speed else []
            bar.update(task.id, count=_count(int(task.completed), total), rate=", ".join(rate + [note] * bool(note)))

        yield advance


@contextmanager
def _lines(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = new = 0
    beside = ""

    def line() -> str:
        parts = [f"{title}: {_count(done, total)} {unit}"]
        if new:
            rate = new / max(time.monotonic() - started, 1e-3)
            parts.append(f"{plain_number(rate)} {unit}/s{beside}")
            if total is not None and done < total:
                parts.append(f"{(total - done) / rate:,.0f} s left")
        elif done:
            parts.append("nothing new")
        return ", ".join(parts)

    def advance(count: int, note: str = "", *, found: bool = False) -> None:
        nonlocal done, new, last, beside
        done += count
        new += 0 if found else count
        beside = f", {note}" if note else beside
        if time.monotonic() - last > LOG_INTERVAL_SECONDS:
            last = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    yield advance
    print(line(), file=sys.stderr, flush=True)


def _count(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None or done == total else f"{done:,} of {total:,}"
