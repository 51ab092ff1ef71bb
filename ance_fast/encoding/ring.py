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

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from ance_fast.encoding.ring_slots import DTYPES, DeviceCopyError, DrainSlot, FillSlot, whole_number
from ance_fast.errors import AnceFastError, ConfigError, MissingDependencyError


class RingCancelled(AnceFastError):
    """The ring was cancelled, or a consumer left before the end; its cause, if it has one, says why."""


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
        self.slots = whole_number("slots", slots)
        self.rows = whole_number("rows", rows)
        self.dim = whole_number("dim", dim)
        self.consumers = whole_number("consumers", consumers)
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
        number = whole_number("consumer", consumer, least=0)
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
    def copy_seconds(self) -> float:
        """Seconds that GPUs have spent on copying rows into slots, of the copies that are known to be made.

        Taken between two CUDA events on the stream of the copies, without what they waited for. 0 for rows of the host.
        """
        return self._engine.copy_seconds

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


def _seconds(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    seconds = float(timeout)
    if math.isnan(seconds) or seconds < 0:
        raise ConfigError(f"timeout is {timeout}; it must be a number of seconds from 0, or None to wait without end")
    return seconds
