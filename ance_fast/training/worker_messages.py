"""What a run and its refresh worker say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """All that a worker needs for its life.

    parts: of the run, `encoder` left out. The encoder's architecture is that of the one in the folder `encoder`, its
    weights come through the shared memory at these `places`.
    """

    parts: dict[str, Any]
    encoder: Path
    attention: str
    dtype: str
    device: str
    threads: int
    places: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """Make the generation after that in the folder `previous` with the weights that are in the shared memory now."""

    step: int
    previous: Path


@dataclass(frozen=True)
class Began:
    """A request is being worked on, from `started` on (as in `Made`)."""

    started: float


@dataclass(frozen=True)
class Made:
    """The generation of `step` is whole in the folder `path`; it was made from `started` to `ended` (seconds of
    `time.monotonic`, which all processes of a host share)."""

    step: int
    path: Path
    started: float
    ended: float


@dataclass(frozen=True)
class Failed:
    """An error ended the worker. `lasting`: it lies in data or settings, and another try would end alike."""

    message: str
    lasting: bool
