"""Arrays of other libraries as torch tensors, without a copy and in the order of their streams."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ance_fast.errors import ConfigError


def as_tensor(name: str, array: Any) -> Tensor:
    """A view of an array with DLPack (CuPy, NumPy) or else `__cuda_array_interface__` (Numba); tensors pass through.

    Torch's current stream waits for what the array's library has queued: with DLPack the library sees to that, with the
    interface, whose `stream` entry torch ignores, this function does. The library's stream does not wait for torch's:
    leave the array unchanged until the ops on it have run. A result goes back as `cupy.from_dlpack(result)`, after
    which CuPy's current stream is behind those ops too; one that requires grad as `result.detach()`.

    A view keeps its array alive and knows no gradient. Raises ConfigError for what is no array, and for an array that
    torch cannot share: read-only or masked device memory, negative strides, an unknown dtype.
    """
    if isinstance(array, Tensor):
        return array
    try:
        if hasattr(array, "__dlpack__"):
            _refuse_negative(getattr(array, "strides", None))
            return from_dlpack(array)
        if hasattr(array, "__cuda_array_interface__"):
            return _from_interface(array)
    except (BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be shared without a copy ({error}); hand over a tensor or a copy") from error
    raise ConfigError(
        f"{name} must be a torch tensor or an array with DLPack (CuPy, NumPy) or __cuda_array_interface__ (Numba), "
        f"got {type(array)}"
    )


def as_optional_tensor(name: str, array: Any) -> Tensor | None:
    return None if array is None else as_tensor(name, array)


def _from_interface(array: Any) -> Tensor:
    interface = array.__cuda_array_interface__
    address, read_only = interface["data"]
    if read_only:
        raise BufferError("it is read-only")
    if interface.get("mask") is not None:
        raise BufferError("it is masked")
    if interface["typestr"].startswith(">"):
        raise BufferError("its numbers are big-endian")
    _refuse_negative(interface.get("strides"))
    stream = interface.get("stream")
    if stream is not None and operator.index(stream) <= 0:
        raise BufferError(f"its stream is {stream}, which the interface does not allow")
    view = torch.as_tensor(array)
    if view.numel() and view.data_ptr() != address:
        raise BufferError(f"torch's default device is {view.device}, not the array's")
    if stream is not None:
        _wait_for(operator.index(stream), view.device)
    return view


def _refuse_negative(strides: tuple[int, ...] | None) -> None:
    # Torch has none: given some through DLPack it ends the process.
    if strides is not None and any(stride < 0 for stride in strides):
        raise BufferError("it has negative strides")


def _wait_for(stream: int, device: torch.device) -> None:
    """Make torch's current stream wait for a stream named as `__cuda_array_interface__` does."""
    # 1 is the legacy default stream, which is torch's too; ExternalStream takes 2, the thread's own, and handles.
    other = torch.cuda.default_stream(device) if stream == 1 else torch.cuda.ExternalStream(stream, device)
    torch.cuda.current_stream(device).wait_stream(other)
