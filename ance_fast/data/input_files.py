"""Where input comes from: files, plain or compressed, by name or pattern, and pipes.

`.gz` is read by the standard library and `.zst` by Arrow, which is there anyway. What comes through a pipe has no name
to go by, so its first bytes tell.
"""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from ance_fast.errors import DataError

COMPRESSED = (".gz", ".zst")
STDIN = Path("/dev/stdin")
"""Standard input: opened as file descriptor 0 and, like every pipe, readable once."""

_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_BLOCK = 1 << 16


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed if its name ends in `.gz` or `.zst`, or if it is a pipe that starts so.

    Raises `OSError`; what goes wrong later, while reading, may be `damage`.
    """
    suffix = path.suffix
    file: BinaryIO | None = None
    if is_pipe(path):
        # Not by its path: /dev/stdin cannot be opened where it is a socket or another user's terminal.
        pipe = open(0, "rb", closefd=False) if path == STDIN else open(path, "rb")  # noqa: SIM115
        # Not peeked at: that may show less, if the writer's first piece is shorter.
        head = pipe.read(4)
        suffix = next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")
        file = io.BufferedReader(_Resumed(head, pipe), _BLOCK)
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file or path, "rb"))
    if suffix == ".zst":
        source = pa.PythonFile(file, "r") if file else pa.OSFile(str(path))
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(source, "zstd"), _BLOCK))
    return file or open(path, "rb")


class _Resumed(io.RawIOBase):
    """A pipe whose first bytes have been read already."""

    def __init__(self, head: bytes, pipe: BinaryIO) -> None:
        self._head, self._pipe = head, pipe

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data, self._head = self._head[: len(view)], self._head[len(view) :]
        data = data or self._pipe.read1(len(view))  # type: ignore[attr-defined]
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._pipe.close()
        super().close()


def damage(error: Exception) -> str | None:
    """What a decompressor's exception says about its data, None if it is an error of another kind."""
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        return f"damaged or cut-off gzip file ({error})"
    # Arrow reports as OSError; one of the system's would carry its number.
    if isinstance(error, OSError) and error.errno is None:
        return f"damaged or cut-off zstd file ({error})"
    return None


def is_pipe(path: Path) -> bool:
    """Whether `path` is standard input or another pipe, which can be read once only."""
    return path == STDIN or path.is_fifo()


def plain_name(path: str | Path) -> str:
    """The last part of `path` without `.gz` or `.zst`."""
    name = Path(path).name
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def find_file(folder: str | Path, *names: str) -> Path:
    """Return the first of `names` that lies in `folder`, plain or with `.gz` or `.zst`.

    Raises `DataError` that lists what was looked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    candidates = _candidates(folder, names)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: none of {', '.join(candidate.name for candidate in candidates)} found there")


def has_file(folder: str | Path, *names: str) -> bool:
    """Whether `find_file` would succeed."""
    return any(candidate.is_file() for candidate in _candidates(Path(folder), names))


def list_files(path: str | Path, *endings: str) -> list[Path]:
    """The files that `path` stands for: itself, a pattern's matches, or a folder's files of these `endings`, sorted.

    A folder's files may be compressed; those in folders below count, hidden ones (`.`, `_`) do not. Raises `DataError`
    if there are none.
    """
    here = Path(path)
    if here.is_dir():
        found = [file for file in here.rglob("*") if plain_name(file).endswith(endings) and file.is_file()]
        found = [file for file in found if not any(part[0] in "._" for part in file.relative_to(here).parts)]
        problem = f"no {' or '.join(endings)} files in this folder"
    elif here.exists():
        return [here]
    elif glob.has_magic(str(path)):
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        problem = "no file matches this pattern"
    else:
        raise DataError(f"{path}: no such file")
    if not found:
        raise DataError(f"{path}: {problem}")
    return sorted(found)


def _candidates(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / (name + suffix) for name in names for suffix in ("", *COMPRESSED)]
