"""Progress of long work on standard error: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

LOG_INTERVAL_SECONDS = 30.0


class Advance(Protocol):
    """Advances a bar by `count`; `note`, where given, is shown beside the rate."""

    def __call__(self, count: int, note: str = "") -> None: ...


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
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console()) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(count: int, note: str = "") -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            rate = [f"{speed:,.0f} {unit}/s"] if speed else []
            bar.update(task, rate=", ".join(rate + [note] * bool(note)))

        yield advance


@contextmanager
def _lines(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = 0
    beside = ""

    def line() -> str:
        seconds = max(time.monotonic() - started, 1e-3)
        rate = done / seconds
        left = f", {(total - done) / rate:,.0f} s left" if total is not None and 0 < done < total else ""
        of = "" if total is None or done == total else f" of {total:,}"
        return f"{title}: {done:,}{of} {unit}, {rate:,.3g} {unit}/s{beside}{left}"

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last, beside
        done += count
        beside = f", {note}" if note else beside
        if time.monotonic() - last > LOG_INTERVAL_SECONDS:
            last = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    yield advance
    print(line(), file=sys.stderr, flush=True)
