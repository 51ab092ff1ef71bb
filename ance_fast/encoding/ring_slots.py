"""Views of a ring's slot that copy nothing, and copies into a slot and out of it.

`EmbeddingRing.fill` and `EmbeddingRing.drain` give these out; see `ance_fast/encoding/ring.py`.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from ance_fast.errors import AnceFastError, ConfigError

if TYPE_CHECKING:
    from ance_fast.encoding.ring import EmbeddingRing

logger = logging.getLogger(__name__)

# NumPy has no bfloat16: its bits travel as uint16, and torch reads them as what they are.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


class DeviceCopyError(AnceFastError):
    """A GPU could not copy rows into the ring; the message is what CUDA says."""


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
        count, number = whole_number("rows", rows), operator.index(tag)
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


def whole_number(name: str, value: int, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number") from None
    if number < least:
        raise ConfigError(f"{name} is {number}; it must be at least {least}")
    if number >= 2**63:
        raise ConfigError(f"{name} is {number}; it must fit 64 bits")
    return number
