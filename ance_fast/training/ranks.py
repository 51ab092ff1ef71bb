"""The processes of one training run (ranks): what they tell each other, and how an error on one ends all.

A rank that raised while others wait for it in a collective would leave them waiting. So a part of the work that can
fail goes through `Ranks.each`, `first`, `rows` or `fill`: after it every rank says whether it succeeded, and only then
is data exchanged. These words go through a group of their own (gloo, on the host), which costs no device a wait. It
notices the death of a process at once, and waits as long as the living need.

With one process nothing is exchanged and nothing is initialised.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ance_fast.errors import ConfigError, RankError

Value = TypeVar("Value")

# For the first rank's work alone (BM25 of a corpus, dev queries) the others wait hours if need be.
PATIENCE = timedelta(days=2)
# What the head of a shared value says: it is None, it is the number, or so many pickled bytes follow.
_NONE, _NUMBER, _PICKLED = range(3)


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`; the first one decides and writes.

    group: over which they talk; None where there is one process.

    Every method is collective: all ranks call it, in the same order. Each raises, on every rank, when the work of one
    failed: its own error there, `RankError`, which quotes it, on the others; and `RankError` when a process is gone.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides and writes."""
        return self.rank == 0

    def span(self, count: int, rank: int | None = None) -> tuple[int, int]:
        """(start, stop) of this rank's (or `rank`'s) share of `count` rows; shares lie in the order of ranks."""
        number = self.rank if rank is None else rank
        return count * number // self.size, count * (number + 1) // self.size

    def share(self, value: Any) -> Any:
        """The first rank's `value` (picklable) on every rank; what others pass is ignored.

        One small message for None and integers, two for anything else.
        """
        if self.size == 1:
            return value
        with _somebody_gone():
            head, content = _packed(value) if self.leads else (torch.zeros(2, dtype=torch.int64), None)
            dist.broadcast(head, src=0, group=self.group)
            kind, number = head.tolist()
            if kind == _PICKLED:
                content = torch.empty(number, dtype=torch.uint8) if content is None else content
                dist.broadcast(content, src=0, group=self.group)
        if self.leads or content is None:
            return value if self.leads else {_NONE: None, _NUMBER: number}[kind]
        return pickle.loads(content.numpy().data)

    def each(self, work: Callable[[], Value]) -> list[Value]:
        """What `work` returned (picklable) on every rank, in their order."""
        if self.size == 1:
            return [work()]
        failure, result = _attempt(work)
        everyone: list[Any] = [None] * self.size
        with _somebody_gone():
            dist.all_gather_object(everyone, (_words(failure), result), group=self.group)
        _end_together(failure, [said for said, _ in everyone])
        return [value for _, value in everyone]

    def first(self, work: Callable[[], Value]) -> Value:
        """What `work` returned (picklable) on the first rank, which alone does it, on every rank."""
        if self.size == 1:
            return work()
        failure, result = _attempt(work) if self.leads else (None, None)
        said, value = self.share((_words(failure), result))
        _end_together(failure, [said])
        shared: Value = value
        return shared

    def rows(self, count: int, work: Callable[[int, int], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Arrays of `count` rows each, of which every rank computes its share.

        `work(start, stop)` returns arrays of stop - start rows; widths and dtypes are the same on all ranks. It is not
        called for an empty share.
        """
        if self.size == 1:
            return list(work(0, count))
        start, stop = self.span(count)
        own: list[np.ndarray] = []

        def described() -> list[tuple[str, tuple[int, ...]]] | None:
            if stop == start:
                return None
            own.extend(np.ascontiguousarray(array) for array in work(start, stop))
            return [(array.dtype.str, array.shape[1:]) for array in own]

        kinds = next((kinds for kinds in self.each(described) if kinds is not None), [])
        whole = [np.empty((count, *shape), dtype=dtype) for dtype, shape in kinds]
        for number, array in enumerate(whole):
            if own:
                array[start:stop] = own[number]
            # As bytes: every dtype travels alike.
            self._exchange(torch.from_numpy(array.reshape(count, -1).view(np.uint8)), self.group)
        return whole

    def fill(self, matrix: Tensor, work: Callable[[int, int], None]) -> None:
        """Fill `matrix` [n, ...] on any device: `work(start, stop)` writes this rank's rows, the others' are received.

        In place and without a copy, over the process group that trains (NCCL on GPUs).
        """
        start, stop = self.span(len(matrix))
        self.each(lambda: work(start, stop) if stop > start else None)
        if self.size > 1:
            self._exchange(matrix, dist.group.WORLD)

    def agree(self, what: str, work: Callable[[], object]) -> None:
        """Raise `ConfigError` on every rank unless `work` returns the same (picklable) on all; `what` names it.

        With one process it is not even called.
        """
        if self.size == 1:
            return
        values = self.each(work)
        other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
        if other is not None:
            raise ConfigError(
                f"the processes of a run differ in {what}: {values[0]!r} in rank 0, {values[other]!r} in rank {other}; "
                "start all of them with the same command, data and versions"
            )

    def _exchange(self, matrix: Tensor, group: dist.ProcessGroup | None) -> None:
        """Every rank's share of the rows of `matrix`, written by it, to the others."""
        # A broadcast a rank, not one all_gather: shares differ in size, and this way they land where they belong.
        with _somebody_gone():
            for rank in range(self.size):
                start, stop = self.span(len(matrix), rank)
                if stop > start:
                    dist.broadcast(matrix[start:stop], src=rank, group=group)


ALONE = Ranks()


def join(device: str | torch.device, settings: dict[str, Any] | None = None) -> Ranks:
    """The ranks that `torchrun` started this process among (its environment variables), or a single one.

    device: "cpu", "cuda" or "auto", where they train: over gloo, or over NCCL with a GPU each, which becomes this
        process's current one. settings: `TrainingArguments` of the run; ddp_backend and ddp_timeout count here. A
        default process group that exists already is used.

    Raises `ConfigError` where there are fewer GPUs than processes, or variables are missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    settings = settings or {}
    kind = torch.device(device).type if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        local, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= present:
            raise ConfigError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes on this host, which has {present} GPUs; "
                "start one for each (--nproc-per-node), or train with device cpu"
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        backend = settings.get("ddp_backend") or ("nccl" if kind == "cuda" else "gloo")
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=settings.get("ddp_timeout", 1800)))
        except ValueError as error:
            raise ConfigError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several processes train, but not where they meet "
                f"({error}); start them with torchrun, or unset WORLD_SIZE"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))


def leave(ranks: Ranks) -> None:
    """Wait until every rank is done with the others, so that a process may end without cutting one off."""
    if ranks.size == 1:
        return
    # Over the store, whose server outlives them under torchrun: in a last collective, too, some would be done first.
    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(RuntimeError):  # a server that is gone was a rank's own: all had arrived by then
        store.set(f"ance_fast/done/{ranks.rank}", "")
        store.wait([f"ance_fast/done/{rank}" for rank in range(ranks.size)], PATIENCE)


def _packed(value: object) -> tuple[Tensor, Tensor | None]:
    """Head int64 [2], and content uint8 [n] where the head cannot say it all, as `share` sends them."""
    if value is None:
        return torch.tensor([_NONE, 0]), None
    if type(value) is int and -(2**63) <= value < 2**63:
        return torch.tensor([_NUMBER, value]), None
    content = torch.frombuffer(bytearray(pickle.dumps(value, protocol=5)), dtype=torch.uint8)
    return torch.tensor([_PICKLED, len(content)]), content


def _attempt(work: Callable[[], Value]) -> tuple[Exception | None, Value | None]:
    try:
        return None, work()
    except Exception as error:
        return error, None


def _words(failure: Exception | None) -> str | None:
    return None if failure is None else str(failure) or type(failure).__name__


def _end_together(failure: Exception | None, said: list[str | None]) -> None:
    """Raise this rank's own `failure`, or what the first of those that failed `said`."""
    if failure is not None:
        raise failure
    for rank, message in enumerate(said):
        if message is not None:
            raise RankError(f"ended, because rank {rank} failed: {message}")


@contextmanager
def _somebody_gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises when a connection is closed or a wait is over
        raise RankError(
            f"another process of the run is gone ({error}); its own message says why; mend that and resume the run"
        ) from error
