"""The process that makes generations while a run trains; `worker_link.py` starts it.

It finds its `Job` in a file and then gets a `Request` over a connection whenever the run has put new weights into the
shared memory. The answers are `Began` and, once the generation is published, `Made`, or a `Failed`. The process ends
when the run closes the connection or is gone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ance_fast.crash_points import arm, crash_point
from ance_fast.errors import ArtifactError, ConfigError, DataError, MissingDependencyError
from ance_fast.models.encoder import Encoder
from ance_fast.training.generations import Generation
from ance_fast.training.new_generation import new_generation
from ance_fast.training.refresher import RunParts
from ance_fast.training.shared_weights import SharedWeights
from ance_fast.training.worker_messages import Began, Failed, Job, Made, Request


def main(job: Path, connection: int, weights: int, run: int, crash_at: str | None) -> None:
    """Work until the run ends. connection, weights: file descriptors; run: its process id; crash_at: where to die."""
    # A Ctrl-C reaches the whole process group. The run decides what becomes of it, and of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(run)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arm(crash_at)
    answers = Connection(connection)
    begun = False
    try:
        worker = Worker(pickle.loads(job.read_bytes()), weights)
        begun = True
        while True:
            try:
                request: Request = answers.recv()
            except (EOFError, ConnectionResetError):
                return  # the run is over
            started = time.monotonic()
            answers.send(Began(started))
            path = worker.make(request)
            answers.send(Made(request.step, path, started, time.monotonic()))
    except BrokenPipeError:
        return
    except Exception as error:
        traceback.print_exc()
        # What cannot even be begun, and what lies in data or settings, would come again.
        lasting = not begun or isinstance(error, ConfigError | DataError | ArtifactError | MissingDependencyError)
        answers.send(Failed(f"{type(error).__name__}: {error}", lasting))
        sys.exit(1)


class Worker:
    """Makes generations by the weights it finds in the shared memory behind the descriptor `weights`."""

    def __init__(self, job: Job, weights: int) -> None:
        torch.set_num_threads(job.threads)
        encoder = Encoder.load(str(job.encoder), device=job.device, dtype=job.dtype, attention=job.attention)
        self._parts = RunParts(encoder=encoder, **job.parts)
        self._parts.dev.resume()  # an earlier worker of this run may have found a better one than the job knows
        self._weights = SharedWeights(weights, job.places)
        self._newest: tuple[Path, Generation] | None = None

    def make(self, request: Request) -> Path:
        """Make the generation that is asked for; returns where it is published."""
        parts = self._parts
        self._weights.read(parts.encoder)
        if self._newest is None or self._newest[0] != request.previous:
            self._newest = (request.previous, Generation.load(request.previous))
        made = new_generation(parts, self._newest[1], request.step)
        crash_point("worker.before")
        path = made.publish(parts.folder / "generations")
        # Without the index: the next one is built before this would be let go.
        self._newest = (path, replace(made, index=None))
        return path


def _end_with(parent: int) -> None:
    """End this process when `parent` is gone, even in the middle of a long computation."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
