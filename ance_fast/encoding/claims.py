"""Claims: files by which processes that do not talk to each other share out work in one directory.

A claim is a file that only one process can create. While it is held, a thread touches it every few seconds. It is stale
when its process is known to be dead (same machine, and no such process any more), or when it has not been touched for a
while by the file system's own clock. The clocks of two hosts may differ by more than that, so a claim's time is
compared with that of a file touched just now, never with `time.time()`. A stale claim is renamed away and the place
claimed anew.

No lock of the operating system is used, because those are the part of network file systems that fails. The price is
that in rare interleavings (a claimant stopped for longer than the limit and woken again) two processes hold one claim.
What is claimed must bear that; the writing of embedding shards does: both write the same bytes, to files of their own,
and the rename that makes one of them the shard is atomic.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ance_fast.artifacts import create_once
from ance_fast.crash_points import crash_point

logger = logging.getLogger(__name__)

STALE_AFTER_SECONDS = 60.0
BEATS = 12
"""A claim is touched this often within the time after which it counts as stale."""


class Claim:
    """A claim this process holds; made by `take`. As a context manager it is released at the end of the block."""

    def __init__(self, path: Path, token: str, stale_after: float) -> None:
        self.path = path
        self.token = token
        self._released = threading.Event()
        # The file is touched through its descriptor: once taken over by another, the file at `path` is not ours.
        self._descriptor = os.open(path, os.O_RDWR)
        self._heart = threading.Thread(
            target=self._beat, args=(stale_after / BEATS,), name=f"claim {path.name}", daemon=True
        )
        self._heart.start()

    @classmethod
    def take(cls, path: Path, *, stale_after: float = STALE_AFTER_SECONDS) -> Claim | None:
        """Claim `path`, if nobody holds it or its holder is gone; None if somebody does.

        The directory of `path` must exist. Raises `OSError`.
        """
        if path.exists() and not _take_away_if_stale(path, stale_after):
            return None
        token = uuid.uuid4().hex
        owner = {**machine(), "host": socket.gethostname(), "pid": os.getpid(), "token": token}
        owner["started"] = _start_of_process(os.getpid())
        if not create_once(path, json.dumps(owner).encode(), durable=False, point="claim"):
            return None
        try:
            return cls(path, token, stale_after)
        except FileNotFoundError:
            return None

    def release(self) -> None:
        """Give the claim up; a claim that another process has taken over stays its own. May be called again."""
        if self._released.is_set():
            return
        self._released.set()
        self._heart.join()
        os.close(self._descriptor)
        crash_point("release.before")
        if (_owner(self.path) or {}).get("token") == self.token:
            with suppress(FileNotFoundError):
                self.path.unlink()
        crash_point("release.after")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self, seconds: float) -> None:
        while not self._released.wait(seconds):
            # A file system that is away for a moment: others may take over, which is harmless.
            with suppress(OSError):
                os.utime(self._descriptor)


def holder(path: Path, *, stale_after: float = STALE_AFTER_SECONDS) -> str | None:
    """Who holds the claim at `path`, "pid 12 on host-a", or None if nobody alive does."""
    owner = _owner(path)
    if owner is None or _is_stale(path, owner, stale_after):
        return None
    return f"pid {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"


@functools.cache
def machine() -> dict[str, str]:
    """What tells whether a process id means anything here: one boot of one kernel, one namespace of process ids.

    Host names do not tell: containers share them. Empty where the system does not say, so that only time counts.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "pids": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _take_away_if_stale(path: Path, stale_after: float) -> bool:
    """Free the place `path` if its claim is stale. False if a claim stays there."""
    owner = _owner(path)
    if owner is None:
        return True
    if not _is_stale(path, owner, stale_after):
        return False
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.stale")
    crash_point("takeover.before")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    crash_point("takeover.between")
    if _owner(aside) == owner:
        logger.warning(
            "%s: taken over from pid %s on %s, which is gone", path, owner.get("pid", "?"), owner.get("host", "?")
        )
        taken = True
    else:
        # Somebody else took the stale one away and claimed the place before we renamed: give the claim back.
        with suppress(OSError):
            os.link(aside, path)
        taken = False
    aside.unlink(missing_ok=True)
    crash_point("takeover.after")
    return taken


def _is_stale(path: Path, owner: dict[str, Any], stale_after: float) -> bool:
    here = machine()
    if here and {name: owner.get(name) for name in here} == here:
        started = _start_of_process(int(owner["pid"]))
        if started is None or started != owner.get("started"):
            return True
    try:
        # Opened before its time is read: network file systems look up the real one then.
        with open(path, "rb") as file:
            touched = os.fstat(file.fileno()).st_mtime
        return _now(path.parent) - touched > stale_after
    except FileNotFoundError:
        return False  # released or taken over meanwhile: whoever asks looks again


def _now(directory: Path) -> float:
    """The time as the file system of `directory` sees it."""
    clock = directory / f".clock.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(clock, "wb") as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    finally:
        clock.unlink(missing_ok=True)


def _owner(path: Path) -> dict[str, Any] | None:
    """What the claim at `path` says, {} if it says nothing yet, None if there is no claim."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _start_of_process(pid: int) -> str | None:
    """When the process began, in clock ticks since boot; None if there is no such process, or only its remains."""
    try:
        # The name of the program is in parentheses and may hold anything; what follows has fixed places.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
