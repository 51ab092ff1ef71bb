"""Text files, plain or compressed, and pipes, as numbered lines of strict UTF-8.

Every reader goes through `read_lines` (or `read_blocks`, where a line may be gigabytes long), so every message about
malformed input can start with `file:line:`. What lines hold is parsed from the lines, not from the file, so that a
pipe's first line can be looked at before the rest is read.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ance_fast.data.input_files import damage, open_bytes
from ance_fast.errors import DataError

_BOM = b"\xef\xbb\xbf"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line end) of a text file as `open_bytes` opens it.

    A byte order mark at the start is dropped and `\\r\\n` ends a line like `\\n`.

    Raises `DataError` if the file is missing, is not UTF-8 or holds a NUL byte (naming the byte and its column), or is
    compressed and cut short or damaged.
    """
    path = Path(path)
    number = 0
    with _reading(path, lambda: number + 1), open_bytes(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            yield number, _decode(raw.removesuffix(b"\n").removesuffix(b"\r"), path, number)


def read_blocks(path: str | Path, size: int = 1 << 20) -> Iterator[str]:
    """Yield the text of a file in pieces of about `size` bytes, wherever its lines end. Raises as `read_lines`."""
    path = Path(path)
    # It drops a byte order mark.
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    with _reading(path, lambda: line), open_bytes(path) as file:
        while True:
            raw = file.read(size)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                raise DataError(
                    f"{path}:{line}: not UTF-8 (byte 0x{error.object[error.start]:02X}); "
                    "convert the file, e.g. with iconv"
                ) from error
            if "\0" in text:
                line += text.count("\n", 0, text.index("\0"))
                raise DataError(
                    f"{path}:{line}: NUL byte: not a text file in UTF-8 (UTF-16, perhaps); "
                    "convert the file, e.g. with iconv"
                )
            if not raw:
                return
            line += text.count("\n")
            yield text


@contextmanager
def _reading(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Within it, what opening and reading `path` raises becomes a `DataError` that names it; `line` is where it is."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, a file was expected") from None
    except Exception as error:
        problem = damage(error)
        if problem is None:
            raise
        raise DataError(f"{path}:{line()}: {problem}; fetch it again") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file; blank lines are skipped. Raises as `read_lines`."""
    return parse_json(read_lines(path), path)


def parse_json(lines: Iterator[tuple[int, str]], path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of lines of `path`, each a JSON object; blank lines are skipped."""
    for number, line in lines:
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from error
        except ValueError as error:
            raise too_long(path, number) from error
        except RecursionError:
            raise DataError(f"{path}:{number}: JSON nested too deeply") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
        if "\\ud" in line or "\\uD" in line:
            # Half of a surrogate pair is legal JSON but no character: it could not be written as UTF-8 later on.
            refuse_surrogates(value, path, number)
        yield number, value


def too_long(path: str | Path, line: int) -> DataError:
    """The error of JSON that holds an integer of more digits than Python converts."""
    return DataError(f"{path}:{line}: a number of thousands of digits")


def read_columns(path: str | Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of a tab-separated file; blank lines are skipped, tabs in the last field are kept."""
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        fields = line.split("\t", columns - 1)
        if len(fields) != columns:
            raise DataError(f"{path}:{number}: expected {columns} columns separated by tabs, got {len(fields)}")
        yield number, fields


def warn_counted(logger: logging.Logger, count: int, what: str, first: str) -> None:
    """Log one warning for `count` occurrences of `what`, the first of which is at `first`; nothing for a count of 0."""
    if count:
        logger.warning("%d %s (first: %s)", count, what, first)


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02X} at column {error.start + 1}); "
            "convert the file, e.g. with iconv"
        ) from error
    if "\0" in line:
        raise DataError(
            f"{path}:{number}: NUL byte at column {raw.index(0) + 1}: not a text file in UTF-8 (UTF-16, perhaps); "
            "convert the file, e.g. with iconv"
        )
    return line


def refuse_surrogates(value: Any, path: str | Path, number: int) -> None:
    """Raise `DataError` for JSON that holds half of a surrogate pair, which is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{path}:{number}: {half} is half of a surrogate pair, not a character") from error
