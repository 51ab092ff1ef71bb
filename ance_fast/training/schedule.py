"""When to refresh: one interval for the whole run, or an interval for each range of steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ance_fast.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Ranges (start, end, every) of optimizer steps, ascending and without overlap; end None is the end of the run.

    Within a range refreshes fall on start, start + every, ... below end. That is how Atlas (Izacard et al., JMLR 2023)
    reads `--refresh_index`. Step 0 is no refresh: the start negatives are made there.
    """

    ranges: tuple[tuple[int, int | None, int], ...]

    def steps(self, max_steps: int, first: int | None = None) -> list[int]:
        """The refresh steps below `max_steps`, ascending. `first` is one of them and the others come after it.

        Of a single interval they are first, first + every, ...; ranges keep the steps they have.
        """
        if len(self.ranges) == 1 and self.ranges[0][:2] == (0, None):
            every = self.ranges[0][2]
            return list(range(every if first is None else first, max_steps, every))
        found = {
            step
            for start, end, every in self.ranges
            for step in range(start, max_steps if end is None else min(end, max_steps), every)
            if step > 0
        }
        if first is not None:
            found = {step for step in found if step > first} | ({first} if first < max_steps else set())
        return sorted(found)


def parse_schedule(value: str | int, steps_per_epoch: int, name: str) -> Schedule:
    """The schedule meant by "500", "500 steps", "2 epochs", or ranges of steps such as "0-1000:500,1000-:1000".

    Raises `ConfigError` for anything else, ranges that overlap or run backwards included.
    """
    if ":" not in str(value):
        return Schedule(((0, None, steps_of(value, steps_per_epoch, name)),))
    ranges: list[tuple[int, int | None, int]] = []
    for piece in str(value).split(","):
        match = re.fullmatch(r"\s*(\d+)-(\d*):(\d+)\s*", piece)
        if not match or int(match[3]) < 1:
            raise ConfigError(f'{name}={value!r}: {piece!r} is not START-END:STEPS, as in "0-1000:500,1000-:1000"')
        start, end = int(match[1]), int(match[2]) if match[2] else None
        if end is not None and end <= start:
            raise ConfigError(f"{name}={value!r}: the range {piece.strip()!r} is empty")
        if ranges and (ranges[-1][1] is None or start < ranges[-1][1]):
            raise ConfigError(f"{name}={value!r}: the range {piece.strip()!r} begins within the one before it")
        ranges.append((start, end, int(match[3])))
    return Schedule(tuple(ranges))


def steps_of(value: str | int, steps_per_epoch: int, name: str) -> int:
    """Optimizer steps meant by "500", "500 steps" or "2 epochs" (`ConfigError` otherwise)."""
    match = re.fullmatch(r"\s*(\d+)\s*(|steps?|epochs?)\s*", str(value))
    if not match or int(match[1]) < 1:
        raise ConfigError(f'{name}={value!r}: give a number of steps or epochs, such as "500" or "2 epochs"')
    return int(match[1]) * (steps_per_epoch if match[2].startswith("epoch") else 1)


def chunk_of(number: int, chunks: int, count: int) -> range:
    """Part `number` modulo `chunks` of `count` rows. All parts are `count` // `chunks` rows but the last, which has the
    rest too: so microsoft/ANCE cuts its training queries (`ann_chunk_factor`)."""
    place, size = number % chunks, count // chunks
    return range(place * size, count if place == chunks - 1 else (place + 1) * size)
