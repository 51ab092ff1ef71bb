"""Writing one shard of embeddings: a `.npy` file, block after block, summed while it is written.

Beside the finished shard goes a record, a small JSON file with the shard's rows, size, checksum and the digest of the
tokens it was made from. The record is written after the shard: a shard without a record does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ance_fast.artifacts import damage, fsync, write_json
from ance_fast.crash_points import crash_point
from ance_fast.encoding.shard_plan import Shard
from ance_fast.errors import ArtifactError, ConfigError, DataError


class ShardWriter:
    """Takes the rows of one shard in order. As a context manager it finishes the shard, or drops it on an exception.

    The shard appears whole, under its name, when `close` returns; memory used is that of one block.
    """

    def __init__(
        self,
        shard: Shard,
        folder: Path,
        record: Path,
        *,
        dim: int,
        dtype: str,
        mean: np.ndarray | None,
        ids: Sequence[str],
        on_end: Callable[[bool], None] = lambda whole: None,
    ) -> None:
        self.shard = shard
        self.path = folder / shard.name
        self._record, self._dim, self._dtype, self._mean, self._ids = record, dim, np.dtype(dtype), mean, ids
        self._on_end = on_end
        self._staging = folder / f".{shard.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._digest = hashlib.blake2b(digest_size=16)
        self._next = shard.start
        self._bytes = 0
        self._open = True
        try:
            self._file = open(self._staging, "wb")  # noqa: SIM115
        except OSError as error:
            on_end(False)
            raise self._explained(error) from error
        try:
            self._put(_npy_header((shard.rows, dim), self._dtype))
        except BaseException:
            self.abort()
            raise

    def write(self, block: np.ndarray) -> None:
        """Append `block`, float32 or float16 [m, dim], the next rows of the shard.

        Raises `ConfigError` for another shape or more rows than the shard has, `DataError` for NaN, infinity and
        float16 overflow (names the documents), `OSError` on a full disk.
        """
        if block.ndim != 2 or block.shape[1] != self._dim or self._next + len(block) > self.shard.stop:
            raise ConfigError(
                f"a block of shape {list(block.shape)} for rows {self._next}..{self.shard.stop} of {self._dim} values"
            )
        stored = block
        with np.errstate(over="ignore", invalid="ignore"):  # both are looked for below
            if self._mean is not None:
                stored = stored.astype(np.float32) - self._mean
            stored = np.ascontiguousarray(stored, dtype=self._dtype.newbyteorder("<"))
        if not np.isfinite(stored).all():
            self._refuse(block, stored)
        self._put(stored)
        self._next += len(block)

    def close(self) -> None:
        """Finish the shard: fsync, rename, record. Raises `ConfigError` if rows are missing, `OSError`."""
        if not self._open:
            return
        if self._next != self.shard.stop:
            got = self._next - self.shard.start
            self.abort()
            raise ConfigError(f"{self.path}: {got} rows were written, the shard has {self.shard.rows}")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            crash_point("shard.before_rename")
            os.replace(self._staging, self.path)
            crash_point("shard.after_rename")
            fsync(self.path.parent)
            write_record(self._record, self.shard, self._dtype.name, self._bytes, self._digest.hexdigest())
        except OSError as error:
            self.abort()
            if not self.path.parent.is_dir():
                # Another process held the same claim, finished the shard, and the result has been published since.
                return
            raise self._explained(error) from error
        except BaseException:
            self.abort()
            raise
        self._open = False
        self._on_end(True)

    def abort(self) -> None:
        """Drop what was written. Does nothing once the shard is finished."""
        if not self._open:
            return
        self._open = False
        try:
            self._file.close()
        except OSError:
            pass  # what could not be flushed is dropped anyway
        finally:
            self._staging.unlink(missing_ok=True)
            self._on_end(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _put(self, data: bytes | np.ndarray) -> None:
        view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data)
        try:
            self._file.write(view)
        except OSError as error:
            raise self._explained(error) from error
        self._digest.update(view)
        self._bytes += len(view)

    def _refuse(self, block: np.ndarray, stored: np.ndarray) -> None:
        poisoned = np.flatnonzero(~np.isfinite(block).all(axis=1))
        rows = poisoned if len(poisoned) else np.flatnonzero(~np.isfinite(stored).all(axis=1))
        names = ", ".join(repr(self._ids[self._next + int(row)]) for row in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        if len(poisoned):
            raise DataError(
                f"document {names}{more}: the embedding holds NaN or infinity; look at the text or the model"
            )
        largest = float(np.abs(block[rows].astype(np.float32)).max())
        raise DataError(
            f"document {names}{more}: an embedding of magnitude {largest:.6g} does not fit float16 (at most 65504); "
            "store float32"
        )

    def _explained(self, error: OSError) -> OSError:
        reason = (
            f"could not write the embedding shard of rows {self.shard.start} to {self.shard.stop - 1} "
            f"({error.strerror or error}); finished shards stay, run it again to go on"
        )
        return OSError(error.errno, reason, str(self.path))


def write_record(path: Path, shard: Shard, dtype: str, size: int, digest: str) -> None:
    """Say that `shard` is whole: a file of `size` bytes with the BLAKE2b `digest`."""
    record = {
        "number": shard.number,
        "start": shard.start,
        "stop": shard.stop,
        "rows": shard.rows,
        "content": shard.content,
        "dtype": dtype,
        "bytes": size,
        "blake2b": digest,
    }
    write_json(path, record, point="record")


def read_record(path: Path, shard: Shard, dtype: str) -> dict[str, Any] | None:
    """The record at `path` if it is one of this shard in this dtype, else None."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = (shard.start, shard.stop, shard.content, dtype)
        same = (record["start"], record["stop"], record["content"], record["dtype"]) == wanted
        return record if same and isinstance(record["bytes"], int) and isinstance(record["blake2b"], str) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def shard_fault(file: Path, record: Path, shard: Shard, dtype: str, *, verify: bool) -> str | None:
    """Why the shard in `file` does not count as finished, None if it does; with `verify` its checksum is compared."""
    found = read_record(record, shard, dtype)
    if found is None:
        return "no valid record of it" if file.exists() else "missing"
    return damage(file, found, verify=verify)


def map_shard(path: Path, rows: int, dim: int, dtype: str, remedy: str) -> np.ndarray:
    """The shard at `path` mapped read-only, [rows, dim]. Raises `ArtifactError` if its header says anything else."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as .npy ({error}); {remedy}") from error
    if array.shape != (rows, dim) or array.dtype != np.dtype(dtype):
        raise ArtifactError(
            f"{path}: {array.dtype} {list(array.shape)}, the manifest says {dtype} [{rows}, {dim}]; {remedy}"
        )
    return array


def _npy_header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    described = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
