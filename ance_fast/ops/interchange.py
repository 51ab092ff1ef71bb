"""Arrays of other libraries as torch tensors, without a copy."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ance_fast.errors import ConfigError


def as_tensor(name: str, array: Any) -> Tensor:
    """A view of a CuPy, NumPy or other DLPack array; tensors pass through.

    The exchange hands torch's current stream to the producer, which makes it wait for what it has still to write there.
    Views know no gradient; a result goes back the same way, as in `cupy.from_dlpack(tensor)`. Raises ConfigError for
    anything that is no array.
    """
    if isinstance(array, Tensor):
        return array
    if not hasattr(array, "__dlpack__"):
        raise ConfigError(f"{name} must be a torch tensor or an array with DLPack (CuPy, NumPy), got {type(array)}")
    try:
        return from_dlpack(array)
    except (BufferError, RuntimeError, TypeError) as error:
        raise ConfigError(f"{name} cannot be shared without a copy ({error}); hand over a tensor or a copy") from error


def as_optional_tensor(name: str, array: Any) -> Tensor | None:
    return None if array is None else as_tensor(name, array)
