"""Matrices in `.npy` files, mapped read-only and never copied into memory as a whole."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ance_fast.errors import ArtifactError

DTYPES = ("float32", "float16")


class MappedFile:
    """The array [n, dim] of a `.npy` file, float32 or float16.

    Attributes:
        rows: `np.memmap`, read-only.
    """

    def __init__(self, path: str | os.PathLike[str], dim: int) -> None:
        self.path = Path(path)
        try:
            self.rows: np.memmap = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{self.path}: not readable ({error}); build the index again") from error
        if self.rows.dtype.name not in DTYPES or self.rows.ndim != 2 or self.rows.shape[1] != dim:
            raise ArtifactError(
                f"{self.path}: {self.rows.dtype} {list(self.rows.shape)}, expected float32 [count, {dim}] or float16"
            )
        self._identity = _identity(self.path)

    def forget(self, start: int, stop: int) -> None:
        """Give back the memory of the pages that hold rows start .. stop; reading them again reads the file again."""
        buffer: mmap.mmap = self.rows._mmap  # type: ignore[attr-defined]
        width = self.rows.strides[0]
        base = self.rows.offset % mmap.ALLOCATIONGRANULARITY
        first = -(-(base + start * width) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (base + stop * width) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            buffer.madvise(mmap.MADV_DONTNEED, first, last - first)

    def copy_to(self, target: Path) -> None:
        """Make the file `target` of the same content: a hard link where the file system can, else a copy."""
        try:
            # The name may have been given to another file since; the mapping still shows the old one.
            if _identity(self.path) == self._identity:
                os.link(self.path, target)
                if _identity(target) == self._identity:
                    return
                target.unlink()
        except OSError:
            target.unlink(missing_ok=True)
        step = 4096
        write_npy(
            target, self.rows.dtype, self.rows.shape,
            (self.rows[start : start + step] for start in range(0, len(self.rows), step)),
        )  # fmt: skip


def write_npy(path: Path, dtype: np.dtype, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Write the array of `shape` that `blocks` are the rows of, one block in memory at a time."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=dtype).reshape(-1).view(np.uint8).data)


def _identity(path: Path) -> tuple[int, int, int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
