"""The process that makes generations while a run trains: `python -m ance_fast.training.refresh_worker FD`.

FD is its end of a connection to the run (`worker_link.py`), which sends a `Job`, and then a `Request` whenever it has
put new weights into the shared memory. The answer is a `Made` once the generation is published, or a `Failed`. The
process ends when the run closes the connection or is gone.
"""

from __future__ import annotations

import ctypes
import logging
import os
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
from ance_fast.errors import ConfigError, DataError, MissingDependencyError
from ance_fast.models.encoder import Encoder
from ance_fast.training.generations import Generation
from ance_fast.training.new_generation import new_generation
from ance_fast.training.refresher import RunParts
from ance_fast.training.shared_weights import SharedWeights
from ance_fast.training.worker_messages import Failed, Job, Made, Request


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    # A Ctrl-C reaches the whole process group. The run decides what becomes of it, and of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        job: Job = connection.recv()
        _end_with(job.parent)
        _serve(connection, job)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        traceback.print_exc()
        lasting = isinstance(error, ConfigError | DataError | MissingDependencyError)
        connection.send(Failed(f"{type(error).__name__}: {error}", lasting))
        sys.exit(1)


def _serve(connection: Connection, job: Job) -> None:
    arm(job.crash_at)
    torch.set_num_threads(job.threads)
    encoder = Encoder.load(str(job.encoder), device=job.device, dtype=job.dtype, attention=job.attention)
    parts = RunParts(encoder=encoder, **job.parts)
    weights = SharedWeights(*job.weights)
    newest: tuple[Path, Generation] | None = None
    while True:
        request: Request = connection.recv()
        started = time.monotonic()
        weights.read(encoder)
        if newest is None or newest[0] != request.previous:
            newest = (request.previous, Generation.load(request.previous))
        made = new_generation(parts, newest[1], request.step)
        crash_point("worker.before")
        path = made.publish(parts.folder / "generations")
        crash_point("worker.after")
        # Without the index: the next one is built before this would be let go.
        newest = (path, replace(made, index=None))
        del made
        connection.send(Made(request.step, path, time.monotonic() - started))


def _end_with(parent: int) -> None:
    """End this process when `parent` is gone, even in the middle of a long computation."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
