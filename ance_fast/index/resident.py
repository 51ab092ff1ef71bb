"""A matrix on a device that an encoder writes into and a search reads, with nothing copied between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index.devices import chosen_devices, torch_devices
from ance_fast.index.index import Index
from ance_fast.index.mapped import DTYPES


class ResidentMatrix:
    """Room for `capacity` vectors of `dim` numbers on a device, allocated once.

    Attributes:
        matrix: tensor [capacity, dim]. A kernel may write its rows directly; what it has written by the time a search
            is queued on the same stream is what the search sees.
        written: rows 0 .. written hold vectors.

    Relations: `Index.build` copies the vectors it is given and checks them; this leaves both to the writer, so that
    replacing a row costs the row. float16 and bfloat16 halve the memory; a GPU then rounds queries to it as well.
    """

    stage = "write"

    def __init__(self, capacity: int, dim: int, device: str = "auto", dtype: str = "float32") -> None:
        import torch

        if capacity < 1 or dim < 1:
            raise ConfigError(f"a resident matrix of {capacity} x {dim}; both must be at least 1")
        if dtype not in (*DTYPES, "bfloat16"):
            raise ConfigError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}, bfloat16")
        (place,) = torch_devices(chosen_devices(device, None))
        self.matrix = torch.empty((capacity, dim), dtype=getattr(torch, dtype), device=place)
        self.written = 0

    def write(self, start: int, block: Any) -> None:
        """Write rows start .. start + m from `block` [m, dim], an array or tensor; a sink of the encoder.

        Raises `ConfigError` if they do not fit, or leave a gap behind the rows written so far.
        """
        import torch

        stop = start + len(block)
        if not 0 <= start <= self.written or stop > len(self.matrix) or block.shape[1:] != self.matrix.shape[1:]:
            raise ConfigError(
                f"rows {start}..{stop} of {list(block.shape[1:])} into a matrix of {list(self.matrix.shape)} whose "
                f"first {self.written} rows are written"
            )
        rows = torch.from_numpy(block) if isinstance(block, np.ndarray) else block
        self.matrix[start:stop].copy_(rows)  # waits: the caller may use the block again
        self.written = max(self.written, stop)

    def index(self, ids: Any = None, *, metric: str = "ip", fingerprint: str | None = None) -> Index:
        """An exact index over the rows written, which sees every later change of them.

        ids: one a row written. metric: "cosine" normalises rows whenever they are searched.
        """
        rows = self.matrix[: self.written]
        return Index.over(rows, ids, metric=metric, fingerprint=fingerprint, check=False)
