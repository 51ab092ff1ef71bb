"""The weights of a module in memory that two processes share: how a run hands them to its refresh worker."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes; a tensor's bytes are read as its own dtype


@dataclass(frozen=True)
class _Place:
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class SharedWeights:
    """A copy of a module's state, in memory behind a file descriptor that a child process can inherit.

    `write` and `read` are plain copies. Who writes has to know that nobody reads: the two sides take turns.
    """

    def __init__(self, descriptor: int, places: dict[str, _Place]) -> None:
        self.descriptor = descriptor
        self.places = places
        mapping = mmap.mmap(descriptor, _size(places))
        self._views: dict[str, Tensor] = {
            name: torch.frombuffer(
                mapping, dtype=place.dtype, count=torch.Size(place.shape).numel(), offset=place.offset
            ).view(place.shape)
            for name, place in places.items()
        }

    @classmethod
    def for_module(cls, module: nn.Module) -> SharedWeights:
        """Room for the parameters and persistent buffers of `module`; `close` gives it back."""
        places, offset = {}, 0
        for name, tensor in module.state_dict().items():
            if tensor.numel():
                places[name] = _Place(offset, tensor.dtype, tuple(tensor.shape))
                offset += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        descriptor = os.memfd_create("ance_fast weights")
        os.ftruncate(descriptor, _size(places))
        return cls(descriptor, places)

    def write(self, module: nn.Module) -> None:
        """Copy the state of `module`, from whatever device it is on."""
        state = module.state_dict()
        for name, view in self._views.items():
            view.copy_(state[name])

    def read(self, module: nn.Module) -> None:
        """Copy what was written into the parameters and buffers of `module`, of the same names and shapes."""
        state = module.state_dict()
        with torch.no_grad():
            for name, view in self._views.items():
                state[name].copy_(view)

    def close(self) -> None:
        """Close this process' descriptor. The memory lives until nobody maps it."""
        os.close(self.descriptor)


def _size(places: dict[str, _Place]) -> int:
    ends = [p.offset + torch.Size(p.shape).numel() * p.dtype.itemsize for p in places.values()]
    return max(ends, default=1)
