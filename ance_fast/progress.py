"""Progress of long work on standard error: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

LOG_INTERVAL_SECONDS = 30.0


@functools.cache
def stderr_console() -> Console:
    """The one console on standard error: bars within bars and log lines above them need to share it."""
    return Console(file=sys.stderr)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show `title` with count, rate in `unit`/s and time; yields a function that advances by n."""
    with _bar(title, total, unit) if stderr_console().is_terminal else _lines(title, total, unit) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
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

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def _lines(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    started = last = time.monotonic()
    done = 0

    def line() -> str:
        rate = done / max(time.monotonic() - started, 1e-3)
        of = "" if total is None or done == total else f" of {total:,}"
        return f"{title}: {done:,}{of} {unit}, {rate:,.3g} {unit}/s"

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last > LOG_INTERVAL_SECONDS:
            last = time.monotonic()
            print(line(), file=sys.stderr, flush=True)

    yield advance
    print(line(), file=sys.stderr, flush=True)
