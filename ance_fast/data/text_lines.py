"""Text files, plain or gzip, as numbered lines of strict UTF-8.

Every reader goes through `read_lines`, so every message about malformed input can start with `file:line:`.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ance_fast.errors import DataError

_BOM = b"\xef\xbb\xbf"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line end) of a text file; a name ending in `.gz` is decompressed.

    A byte order mark at the start is dropped and `\\r\\n` ends a line like `\\n`.

    Raises `DataError` if the file is missing, is not UTF-8 (naming the byte and its column), or is a gzip file that is
    cut short or damaged.
    """
    path = Path(path)
    number = 0
    try:
        with _open_bytes(path) as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(_BOM)
                yield number, _decode(raw.removesuffix(b"\n").removesuffix(b"\r"), path, number)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, a file was expected") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}:{number + 1}: damaged or cut-off gzip file ({error}); fetch it again") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file; blank lines are skipped. Raises as `read_lines`."""
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from error
        except RecursionError:
            raise DataError(f"{path}:{number}: JSON nested too deeply") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
        if "\\ud" in line or "\\uD" in line:
            # Half of a surrogate pair is legal JSON but no character: it could not be written as UTF-8 later on.
            _refuse_surrogates(value, path, number)
        yield number, value


def read_columns(path: str | Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of a tab-separated file; blank lines are skipped, tabs in the last field are kept."""
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        fields = line.split("\t", columns - 1)
        if len(fields) != columns:
            raise DataError(f"{path}:{number}: expected {columns} columns separated by tabs, got {len(fields)}")
        yield number, fields


def find_file(folder: str | Path, *names: str) -> Path:
    """Return the first of `names` that lies in `folder`, plain or with `.gz`.

    Raises `DataError` that lists what was looked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    candidates = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: none of {', '.join(candidate.name for candidate in candidates)} found there")


def has_file(folder: str | Path, *names: str) -> bool:
    """Whether `find_file` would succeed."""
    return any((Path(folder) / (name + suffix)).is_file() for name in names for suffix in ("", ".gz"))


def warn_counted(logger: logging.Logger, count: int, what: str, first: str) -> None:
    """Log one warning for `count` occurrences of `what`, the first of which is at `first`; nothing for a count of 0."""
    if count:
        logger.warning("%d %s (first: %s)", count, what, first)


def _open_bytes(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02X} at column {error.start + 1}); "
            "convert the file, e.g. with iconv"
        ) from error


def _refuse_surrogates(value: Any, path: str | Path, number: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{path}:{number}: {half} is half of a surrogate pair, not a character") from error
