"""What a run and its refresh worker say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """All that a worker needs for its life.

    parts: of the run, `encoder` left out. encoder: folder to load one of its architecture from. weights: descriptor and
    places of the shared memory. parent: process id of the run. crash_at: a crash point to die at.
    """

    parts: dict[str, Any]
    encoder: Path
    attention: str
    dtype: str
    device: str
    threads: int
    weights: tuple[int, dict[str, Any]]
    parent: int
    crash_at: str | None = None


@dataclass(frozen=True)
class Request:
    """Make the generation after that in the folder `previous` with the weights that are in the shared memory now."""

    step: int
    previous: Path


@dataclass(frozen=True)
class Made:
    """The generation of `step` is whole in the folder `path`; it took `seconds`."""

    step: int
    path: Path
    seconds: float


@dataclass(frozen=True)
class Failed:
    """An error ended the worker. `lasting`: it lies in data or settings, and another try would end alike."""

    message: str
    lasting: bool
