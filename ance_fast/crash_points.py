"""Places where a process can be made to die, so that tests can show that nothing is lost there.

`ANCE_FAST_CRASH_AT=shard.before_rename:3` kills the process with SIGKILL, as a power cut would, when it reaches that
point for the third time (without a number: the first). Unset, a point costs the comparison of two variables.
"""

from __future__ import annotations

import os
import signal

from ance_fast.errors import ConfigError

VARIABLE = "ANCE_FAST_CRASH_AT"

CRASH_POINTS = (
    # artifacts: any file written atomically, and the directory that replaces another
    "file.before_rename",
    "file.after_rename",
    "manifest.before_rename",
    "manifest.after_rename",
    "publish.before",
    "publish.between",
    "publish.after",
    "recover.before",
    "recover.after",
    # claims on shards: made, given up, taken over from the dead
    "claim.before",
    "claim.after",
    "release.before",
    "release.after",
    "takeover.before",
    "takeover.between",
    "takeover.after",
    # shards of embeddings, in the order of a run
    "job.before",
    "job.after",
    "extend.before_rename",
    "extend.after_rename",
    "adopt.before",
    "adopt.after",
    "budget.before",
    "budget.after",
    "mean.before",
    "mean.after",
    "shard.before_rename",
    "shard.after_rename",
    "record.before_rename",
    "record.after_rename",
    "ids.before_rename",
    "ids.after_rename",
    "cleanup.before",
    "cleanup.between",
    "cleanup.after",
    # training: a step, a generation that is published and then used, a checkpoint
    "step.before",
    "generation.before",
    "generation.after",
    "generation.swapped",
    "checkpoint.between",
    "checkpoint.after",
    # the worker that makes a generation, before it publishes it; there it alone dies
    "worker.before",
)

_armed: str | None = None
_remaining = 0


def arm(spec: str | None) -> None:
    """Die at `name` or `name:n`; None disarms. Raises `ConfigError` for a point that does not exist."""
    global _armed, _remaining
    name, _, count = (spec or "").partition(":")
    if spec and (name not in CRASH_POINTS or not (count or "1").isdecimal() or int(count or "1") < 1):
        raise ConfigError(f"{VARIABLE}={spec!r}: give name or name:n, n from 1, name one of {', '.join(CRASH_POINTS)}")
    _armed, _remaining = name or None, int(count or "1")


def crash_point(name: str) -> None:
    """Die here if armed for `name` and reached as often as asked for."""
    global _remaining
    if _armed is None or name != _armed:
        return
    _remaining -= 1
    if _remaining == 0:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE))
