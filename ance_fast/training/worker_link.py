"""A run's side of its refresh worker: start it, hand it weights, hear what it made, notice when it dies."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ance_fast.artifacts import sweep
from ance_fast.crash_points import VARIABLE
from ance_fast.errors import WorkerError
from ance_fast.training.ranks import ALONE
from ance_fast.training.refresher import RunParts
from ance_fast.training.shared_weights import SharedWeights
from ance_fast.training.worker_messages import Began, Failed, Job, Made, Request

logger = logging.getLogger(__name__)

# Deaths in a row, with nothing made between them, that end the run.
MOST_DEATHS = 3
JOB = "job.pickle"
# Of a distributed job, whose members the worker is not.
JOB_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class WorkerLink:
    """One worker process and at most one generation in the making.

    A worker that dies is started again, and makes the generation it was at by the weights of `hand_over`'s next call.

    Attributes:
        asked: the step whose weights it works with, None while it has nothing to do.
    """

    def __init__(self, parts: RunParts, *, device: str, threads: int) -> None:
        self.asked: int | None = None
        self._busy = 0.0
        self._began: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._parts = parts
        self._device = device
        self._threads = threads
        self._log = parts.folder / "worker.log"
        self._deaths = 0
        self._weights = SharedWeights.for_module(parts.encoder)
        # By its name, what a killed run leaves of it is swept when the run is resumed.
        self._files = parts.folder / f".worker.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self._log.unlink(missing_ok=True)
            self._write_job()
            # Tests let a worker die at a crash point of its own; the one that takes its place is to live.
            at = os.environ.get(VARIABLE, "")
            self._start(at if at.startswith("worker.") else None)
        except BaseException:
            self.close()
            raise

    def hand_over(self, step: int, previous: Path) -> None:
        """Copy the weights as they are before optimizer step `step`; ask for the generation after that in `previous`.

        To be called only while nothing is asked for.
        """
        assert self.asked is None
        self._weights.write(self._parts.encoder)
        self.asked = step
        assert self._connection is not None
        with suppress(OSError):  # it has died, which `poll` finds and mends
            self._connection.send(Request(step, previous))

    def poll(self, timeout: float = 0.0) -> Made | None:
        """What was made since, waiting up to `timeout` seconds for it; None if it is not there yet, or the worker died.

        Raises `WorkerError` when the worker fails for good, or dies for the third time in a row.
        """
        assert self._connection is not None
        try:
            message = self._connection.recv() if self._connection.poll(timeout) else None
            if isinstance(message, Began):
                self._began = message.started
                message = self._connection.recv() if self._connection.poll(0) else None
        except (EOFError, OSError):
            self._restart("died")
            return None
        if isinstance(message, Failed):
            if message.lasting:
                raise WorkerError(f"refresh worker: {message.message} (see {self._log})")
            self._restart(f"failed: {message.message}")
            return None
        if message is not None:
            self._deaths, self.asked, self._began = 0, None, None
            self._busy += message.ended - message.started
        return message

    def busy_seconds(self) -> float:
        """How long it has worked so far, as far as it has said; starting and waiting do not count."""
        return self._busy + (time.monotonic() - self._began if self._began is not None else 0.0)

    def close(self) -> None:
        """End the worker, whatever it is doing, and remove what it leaves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._weights.close()
        shutil.rmtree(self._files, ignore_errors=True)
        self._tidy()

    def _restart(self, how: str) -> None:
        assert self._process is not None
        assert self._connection is not None
        self._deaths += 1
        self.asked = self._began = None
        self._connection.close()
        try:  # the connection closes a moment before the process is gone
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        ended = signal.Signals(-status).name if status < 0 else f"status {status}"
        message = f"the refresh worker {how} ({ended}); what it wrote is in {self._log}{_last_line(self._log)}"
        if self._deaths >= MOST_DEATHS:
            raise WorkerError(f"{message}. That was {self._deaths} times in a row: the run ends; resume it when mended")
        logger.warning("%s. Starting it again with the last whole generation", message)
        self._tidy()
        self._start(None)

    def _tidy(self) -> None:
        """What the worker was writing is put away; the best encoder is the one that it finished last."""
        sweep(self._parts.folder / "generations")
        sweep(self._parts.folder, of="best")
        self._parts.dev.resume()

    def _write_job(self) -> None:
        # A file, because it may be far larger than what a connection takes before its other end reads.
        self._files.mkdir(parents=True)
        self._parts.encoder.write(self._files)
        parts: dict[str, Any] = {f.name: getattr(self._parts, f.name) for f in dataclasses.fields(self._parts)}
        del parts["encoder"]
        backbones = [tower.backbone for tower in self._parts.encoder.towers]
        modes = {backbone.mode for backbone in backbones}
        job = Job(
            parts={**parts, "ranks": ALONE},
            encoder=self._files.absolute(),
            attention=modes.pop() if len(modes) == 1 else "auto",
            dtype=str(backbones[0].dtype).removeprefix("torch."),
            device=self._device,
            threads=self._threads,
            places=self._weights.places,
        )
        (self._files / JOB).write_bytes(pickle.dumps(job, protocol=5))

    def _start(self, crash_at: str | None) -> None:
        ours, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if k not in (*JOB_VARIABLES, VARIABLE)}
        environment |= {"OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false"}
        with theirs, open(self._log, "ab") as log:
            given = (
                (self._files / JOB).absolute(), theirs.fileno(), self._weights.descriptor, os.getpid(), crash_at
            )  # fmt: skip
            # The same modules are to be found as here, wherever the run was started.
            program = f"import sys; sys.path[:] = {sys.path!r}; from pathlib import PosixPath; "
            program += f"from ance_fast.training.refresh_worker import main; main(*{given!r})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(), self._weights.descriptor),
            )
        self._connection = Connection(ours.detach())


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f", last: {last.strip()[:200]}" if last else ""
