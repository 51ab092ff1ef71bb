"""Threads of the encoder on a CPU: a batch to each core, instead of all cores to each batch.

A matrix product on several threads ends when its slowest thread does, some fifty times a batch: one core that is busy
with something else holds up all of them. Batches that each run on one thread wait for nobody. And their bits do not
depend on how many of them there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
# Batches handed to a worker before it has asked for one.
QUEUED = 1

# torch's number of threads belongs to the process, so what changes it for a while has to know of the others that do.
_lock = threading.Lock()
_users = 0
_threads_outside = 1


@contextmanager
def one_thread_an_operation() -> Iterator[int]:
    """Within it torch runs every operation on the thread that asks for it; yields how many it used outside."""
    global _users, _threads_outside
    with _lock:
        if _users == 0:
            _threads_outside = torch.get_num_threads()
            torch.set_num_threads(1)
        _users += 1
    try:
        yield _threads_outside
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_threads_outside)


class Workers:
    """Runs a function over items on `count` threads without gradients; on the caller's where `count` is 1.

    As a context manager it ends its threads.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="encoder") if count > 1 else None
        self._count = count

    def run(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """`work(item)` for every item; returns when all are done. Items are taken as threads become free.

        Raises the first exception of `work`, after those that run have ended.
        """
        if self._pool is None:
            for item in items:
                work(item)
            return
        running: set[Future[None]] = set()
        try:
            for item in items:
                if len(running) >= self._count + QUEUED:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                running.add(self._pool.submit(torch.no_grad()(work), item))
            for future in running:
                future.result()
        finally:
            wait(running)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
