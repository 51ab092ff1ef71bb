"""Bounded slots of embeddings between what computes them and what stores them.

    with EmbeddingRing(slots=4, rows=1024, dim=384, dtype="float16", consumers=2) as ring:
        ...                                   # start consumers, each in its own thread
        for first, vectors in batches:        # or in several threads, joined before the block ends
            with ring.fill() as slot:         # waits for a free slot
                slot.copy_from(vectors)       # a tensor [up to 1024, 384] of the host or of a GPU
                slot.publish(len(vectors), tag=first)

    with ring.drain(consumer=0) as slots:     # in a consumer's thread
        for slot in slots:
            write(slot.tag, slot.array)       # float16 [rows published, dim]; free again when the loop goes on

Every consumer sees every slot once, in the order of publication. The memory is allocated once and never grows: a
producer waits until the slowest consumer has released a slot. Leaving the block of the ring closes it: consumers drain
what is left and stop. An exception that leaves any of these blocks fails the ring instead: everybody who waits wakes
up, and the same exception is raised on every other side. The waiting is done in csrc/embedding_ring.h, without the GIL;
Ctrl-C ends it.

Rows of a GPU are copied by the GPU: `copy_from` queues the copy on a stream of the ring behind what the current stream
has been given, and `publish` does not wait for it. The consumer's wait does, so that the host, the GPU's computing and
its copying go on side by side. The ring holds the tensor until its copy has been made.
"""

from __future__ import annotations

import functools
import logging
import math
import operator
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch

from ance_fast.errors import AnceFastError, ConfigError, MissingDependencyError

logger = logging.getLogger(__name__)

# NumPy has no bfloat16: its bits travel as uint16, and torch reads them as what they are.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


class RingCancelled(AnceFastError):
    """The ring was cancelled, or a consumer left before the end; its cause, if it has one, says why."""


class DeviceCopyError(AnceFastError):
    """A GPU could not copy rows into the ring; the message is what CUDA says."""


class EmbeddingRing:
    """`slots` slots of [rows, dim] values between producers and `consumers` consumers.

    dtype: "float32", "float16" or "bfloat16".
    consumers: how many will drain, numbered from 0. The stream waits for each of them, so each must drain.
    pinned: whether the memory is page-locked, which a GPU needs to copy while the host goes on. "auto": where the
        package was built with CUDA and there is a GPU. It starts CUDA: say False where no GPU will fill slots.

    One allocation of slots * rows * dim values, every slot aligned to 64 bytes, with huge pages where the system grants
    them; all of it is there from the begin. `ring.pinned` and `ring.memory` say what kind it is and why. As a context
    manager it closes at the end of the block, and fails if an exception ends the block. Raises ConfigError for sizes
    below 1, another dtype, or pages that cannot be locked, MemoryError where the memory cannot be had.
    """

    def __init__(
        self,
        *,
        slots: int,
        rows: int,
        dim: int,
        dtype: str = "float32",
        consumers: int = 1,
        pinned: bool | Literal["auto"] = "auto",
    ) -> None:
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ConfigError(f"dtype is {name}; a ring holds float32, float16 or bfloat16")
        try:
            from ance_fast import _C
        except ImportError as error:
            raise MissingDependencyError(
                f"the ring needs the compiled part of ance_fast, which does not import ({error}); "
                "reinstall the package with a C++17 compiler present"
            ) from error
        self.slots = _integer("slots", slots)
        self.rows = _integer("rows", rows)
        self.dim = _integer("dim", dim)
        self.consumers = _integer("consumers", consumers)
        self.dtype = name
        self.pinned, self.memory = _memory_kind(pinned)
        try:
            self._engine = _C.EmbeddingRing(
                slots=self.slots,
                rows=self.rows,
                dim=self.dim,
                dtype=DTYPES[name],
                consumers=self.consumers,
                page_locked=self.pinned,
            )
        except ValueError as error:
            raise ConfigError(f"the ring cannot be made: {error}") from error
        except RuntimeError as error:
            size = self.slots * self.rows * self.dim * DTYPES[name].itemsize / 1e6
            raise ConfigError(
                f"{size:.0f} MB of the ring cannot be page-locked ({error}): make it smaller, or say pinned=False"
            ) from error
        # The first counts. Appending is atomic, so a destructor may do it at any point of any thread without a lock.
        self._failures: list[tuple[BaseException, TracebackType | None]] = []

    def fill(self, timeout: float | None = None) -> FillSlot:
        """A block that waits for a free slot: `with ring.fill() as slot:`.

        A block that ends without `slot.publish` gives the slot back unseen; one left by an exception fails the ring.
        Entering raises TimeoutError after `timeout` seconds (None: waits as long as it takes), ConfigError once the
        ring is closed, and the ring's failure if it has failed.
        """
        return FillSlot(self, _seconds(timeout))

    def drain(self, consumer: int = 0, timeout: float | None = None) -> Drain:
        """All slots in the order of publication, as consumer number `consumer`: an iterator, and a block around it.

        Prefer the block, `with ring.drain(0) as slots: for slot in slots:`. An exception that leaves it fails the ring
        at once. A bare loop does not hear of the exception: there the ring is cancelled when Python drops the iterator,
        which is after whoever caught the exception has let go of it. To stop before the end, by `break` for example,
        cancels the ring as well, which would else fill up and stand still.

        timeout: seconds to wait for one slot before TimeoutError; the iterator may then be asked again. Threads that
        drain under one number share its slots among them. Raises ConfigError for a number outside 0 .. consumers - 1.
        """
        number = _integer("consumer", consumer, least=0)
        if number >= self.consumers:
            raise ConfigError(f"consumer is {number}; this ring has consumers 0 to {self.consumers - 1}")
        return Drain(self, number, _seconds(timeout))

    def close(self) -> None:
        """No slot will be filled any more; what is published, or in a fill block at this moment, is still drained."""
        self._engine.close()

    def fail(self, error: BaseException) -> None:
        """End the stream at once: everybody who waits, fills or drains gets `error`. Only the first one counts."""
        self._failures.append((error, error.__traceback__))
        self._engine.fail()

    def cancel(self, reason: str = "the ring was cancelled") -> None:
        """`fail` with a RingCancelled."""
        self.fail(RingCancelled(reason))

    @property
    def closed(self) -> bool:
        return self._engine.closed

    @property
    def failed(self) -> bool:
        return self._engine.failed

    @property
    def states(self) -> list[str]:
        """ "free", "filling", "ready" or "draining" for each slot at this moment."""
        return self._engine.states

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            self.fail(error)

    def _wait(self, waiting: Callable[[], Any]) -> Any:
        try:
            return waiting()
        except BaseException as error:  # Ctrl-C: whoever was interrupted will not come back for a slot
            self.fail(error)
            raise

    def _raise_failure(self) -> NoReturn:
        if not self._failures:  # the engine failed by itself
            self._failures.append((DeviceCopyError(self._engine.copy_failure), None))
        error, traceback = self._failures[0]
        if isinstance(error, Exception):
            # Its traceback as it was, which would otherwise grow with every side that raises it.
            raise error.with_traceback(traceback)
        # KeyboardInterrupt and SystemExit mean one thread; raised in another they would end it without a word.
        raise RingCancelled(f"the ring was cancelled: {type(error).__name__} on another side") from error


class _Slot:
    """Views of a slot's rows, [rows, dim], without a copy.

    They keep the memory alive for as long as they exist, but after the slot has gone back others write to it: copy what
    is to be kept. DLPack works on the slot itself: `torch.from_dlpack(slot)`, `numpy.from_dlpack(slot)`.
    """

    _ticket: Any  # FillTicket or DrainTicket; None before the slot is there and after it has gone
    _dtype: str
    _writeable: bool

    @property
    def array(self) -> npt.NDArray[Any]:
        """float32 or float16. ConfigError for bfloat16, which NumPy does not have."""
        if self._dtype == "bfloat16":
            raise ConfigError("NumPy has no bfloat16: take slot.tensor, or the patterns as uint16 with slot.bits")
        return self._view()

    @property
    def bits(self) -> npt.NDArray[Any]:
        """The bit patterns of float16 or bfloat16 values, as uint16."""
        if self._dtype == "float32":
            raise ConfigError("slot.bits is for 16-bit values; this ring holds float32: take slot.array")
        return self._view().view(np.uint16)

    @property
    def tensor(self) -> torch.Tensor:
        """A torch tensor of the ring's dtype. Torch knows no read-only tensors: do not write to a drained slot."""
        tensor = torch.from_numpy(self._held().view())
        return tensor.view(torch.bfloat16) if self._dtype == "bfloat16" else tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    def _view(self) -> npt.NDArray[Any]:
        view: npt.NDArray[Any] = self._held().view()
        if not self._writeable:
            view.flags.writeable = False
        return view

    def _held(self) -> Any:
        if self._ticket is None:
            raise ConfigError(
                "the slot has gone back to the ring: use it inside its block, and copy what is to be kept"
            )
        return self._ticket


class FillSlot(_Slot):
    """A slot to write to: `copy_from(tensor)` or `array[:n] = ...`, then `publish(n, tag)`. Views span all rows."""

    _writeable = True

    def __init__(self, ring: EmbeddingRing, timeout: float | None) -> None:
        self._ring, self._timeout, self._dtype = ring, timeout, ring.dtype
        self._ticket = None

    def copy_from(self, tensor: torch.Tensor, rows: slice | None = None) -> None:
        """Copy `tensor`, [n, dim] of any dtype, into the slot's rows `rows` (None: the first n).

        From the host the rows are there on return. From a GPU they are on their way: the copy follows what the current
        stream of the tensor's device has been given, and consumers get the slot when it has been made. The ring holds
        the tensor until then, so its memory is not handed out again; do not write to it, and take a new one from
        torch for the next rows. Another dtype is converted where the tensor is. Not during CUDA graph capture.

        Raises ConfigError for another shape or rows outside the slot, DeviceCopyError where CUDA refuses the copy.
        """
        ticket, count = self._held(), tensor.shape[0] if tensor.dim() == 2 else 0
        first, stop = _row_range(slice(0, count) if rows is None else rows, self._ring.rows)
        if tensor.shape != (stop - first, self._ring.dim):
            raise ConfigError(
                f"the tensor is {list(tensor.shape)}; rows {first} to {stop} of a slot are "
                f"[{stop - first}, {self._ring.dim}]"
            )
        tensor, dtype = tensor.detach(), getattr(torch, self._dtype)
        if tensor.is_cuda and self._ring._engine.copies_from_cuda:
            tensor = tensor.to(dtype).contiguous()
            device, stream = tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
            try:
                ticket.copy_from_device(tensor.data_ptr(), first, stop - first, device, stream, tensor)
            except RuntimeError as error:
                raise DeviceCopyError(f"from {tensor.device}: {error}") from error
        elif tensor.device.type == "cpu" and tensor.dtype == dtype and tensor.is_contiguous():
            ticket.copy(tensor.data_ptr(), first, stop - first)
        else:
            if tensor.is_cuda:
                _refuse_when_strict()
            self.tensor[first:stop].copy_(tensor)

    def publish(self, rows: int, tag: int) -> None:
        """Hand the first `rows` rows to the consumers; `tag` (64 bits) is the first row's place in the caller's count.

        Do not write to the slot afterwards. Raises ConfigError for rows outside 1 .. ring.rows and for a second call,
        and the ring's failure if it has failed.
        """
        ticket = self._held()
        count, number = _integer("rows", rows), operator.index(tag)
        if count > self._ring.rows:
            raise ConfigError(f"rows is {count}; a slot of this ring holds {self._ring.rows}")
        if not -(2**63) <= number < 2**63:
            raise ConfigError(f"tag is {number}; it must fit 64 bits with a sign")
        self._ticket = None
        if ticket.publish(count, number) == "failed":
            self._ring._raise_failure()

    def __enter__(self) -> Self:
        got = self._ring._wait(lambda: self._ring._engine.acquire(self._timeout))
        if got == "timeout":
            raise TimeoutError(f"no slot became free in {self._timeout} s: a consumer is slow or has stopped")
        if got == "ended":
            raise ConfigError("the ring is closed and takes no more slots: close it after the last producer has ended")
        if got == "failed":
            self._ring._raise_failure()
        self._ticket = got
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # Failed first: consumers of a closed ring must not take the slot's return for the end of the stream.
        if error is not None:
            self._ring.fail(error)
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.abandon()


class DrainSlot(_Slot):
    """A published slot: views span its valid rows. It goes back when the iteration goes on, or with its own block."""

    _writeable = False

    def __init__(self, ring: EmbeddingRing, ticket: Any) -> None:
        self._ring, self._ticket, self._dtype = ring, ticket, ring.dtype
        self.rows: int = ticket.rows
        self.tag: int = ticket.tag
        self.sequence: int = ticket.sequence  # 0 for the first slot published

    def copy_to(self, target: npt.NDArray[Any]) -> None:
        """Copy the rows to a C-contiguous array [rows, dim] of the ring's dtype (bfloat16: of uint16).

        Large ones go past the cache: into memory that was used before and is not read soon, such as the matrix of a
        corpus, this takes about half the time of `target[:] = slot.array`.
        """
        ticket = self._held()
        shape, dtype = (self.rows, self._ring.dim), DTYPES[self._dtype]
        if (
            target.shape != shape
            or target.dtype != dtype
            or not target.flags.c_contiguous
            or not target.flags.writeable
        ):
            raise ConfigError(
                f"the target is {target.dtype} {list(target.shape)}; it must be {dtype} {list(shape)}, C-contiguous "
                "and writeable"
            )
        ticket.copy_to(target)

    def release(self) -> None:
        """Give the slot back before the iteration goes on. May be repeated."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._ring.fail(error)
        self.release()


class Drain:
    """The slots of one consumer; see `EmbeddingRing.drain`."""

    _state: Literal["new", "running", "over"] = "new"
    _slot: DrainSlot | None = None

    def __init__(self, ring: EmbeddingRing, consumer: int, timeout: float | None) -> None:
        self._ring, self._consumer, self._timeout = ring, consumer, timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DrainSlot:
        if self._slot is not None:
            self._slot.release()
            self._slot = None
        if self._state == "over":
            raise StopIteration
        self._state = "running"
        got = self._ring._wait(lambda: self._ring._engine.take(self._consumer, self._timeout))
        if got == "timeout":
            raise TimeoutError(f"no slot was published in {self._timeout} s: the producers are slow or have stopped")
        if got == "ended":
            self._state = "over"
            raise StopIteration
        if got == "failed":
            self._state = "over"
            self._ring._raise_failure()
        self._slot = DrainSlot(self._ring, got)
        return self._slot

    def __enter__(self) -> Self:
        self._state = "running"
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._ring.fail(error)
            self._state = "over"
        self._leave()
        if self._slot is not None:
            self._slot.release()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._state == "running":
            self._state = "over"
            self._ring.cancel(f"consumer {self._consumer} stopped before the end of the stream")


def _memory_kind(pinned: bool | str) -> tuple[bool, str]:
    """Whether to lock pages, and what to say of the memory."""
    if not isinstance(pinned, bool) and pinned != "auto":
        raise ConfigError(f"pinned is {pinned!r}; it must be True, False or 'auto'")
    if pinned is False:
        return False, "pageable, as asked for"  # without a look at CUDA, so that a process may still fork
    from ance_fast import _C

    build = _C.build_info()
    if not build["cuda"]:
        problem = "ance_fast was built without its CUDA part; rebuild it with nvcc on PATH and ANCE_FAST_CUDA=on"
    elif not build["cuda_device_count"]:
        problem = f"there is no GPU: {build['cuda_error'] or 'CUDA counts none'}"
    else:
        return True, "page-locked"
    if pinned is True:
        raise ConfigError(f"the ring's memory cannot be page-locked: {problem}")
    return False, f"pageable: {problem}"


def _refuse_when_strict() -> None:
    """For a GPU's rows where the engine was built without CUDA: torch copies them, and the producer waits."""
    problem = "ance_fast was built without its CUDA part, so a slot is not filled while the GPU goes on"
    if os.environ.get("ANCE_FAST_STRICT") == "1":
        raise ConfigError(f"{problem}, and ANCE_FAST_STRICT=1; rebuild it with nvcc on PATH and ANCE_FAST_CUDA=on")
    _warn_once(f"{problem}; each copy is waited for")


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _row_range(rows: slice, limit: int) -> tuple[int, int]:
    """(first, stop) of `rows` in a slot of `limit` rows."""
    first, stop, step = rows.indices(limit)
    if step != 1 or stop <= first or (rows.stop is not None and rows.stop > limit):
        raise ConfigError(
            f"rows {rows.start} to {rows.stop} in steps of {step} are not rows of a slot, which holds {limit}: name at "
            "least one, in steps of 1"
        )
    return first, stop


def _integer(name: str, value: int, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number") from None
    if number < least:
        raise ConfigError(f"{name} is {number}; it must be at least {least}")
    if number >= 2**63:
        raise ConfigError(f"{name} is {number}; it must fit 64 bits")
    return number


def _seconds(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    seconds = float(timeout)
    if math.isnan(seconds) or seconds < 0:
        raise ConfigError(f"timeout is {timeout}; it must be a number of seconds from 0, or None to wait without end")
    return seconds
