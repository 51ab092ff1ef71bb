"""A JSON file that is one array of objects, object by object: DPR's training files are several gigabytes long.

A piece of the file is held at a time, however long its lines are; where it ends inside an object, twice as much is read
and that object is parsed again, so that each byte is looked at a few times at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ance_fast.data.text_lines import parse_json, read_blocks, read_lines, refuse_surrogates, too_long
from ance_fast.errors import DataError

_PIECE = 1 << 20
_BLANK = re.compile(r"[ \t\n\r]*")


def read_json_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line it begins at, object) of an array of objects, or of JSON Lines, whichever the file begins like.

    Raises `DataError` with file and line: neither, something in the array that is no object, an array that is cut off.
    """
    text = _Text(path)
    text.skip_blank()
    first = text.peek()
    if first in ("{", ""):
        yield from parse_json(read_lines(path), path)
        return
    if first != "[":
        raise DataError(f"{path}:{text.line}: expected a JSON array of objects or one object a line, got {first!r}")
    text.advance(1)
    text.skip_blank()
    separator = ""
    while text.peek() != "]":
        if separator:
            if text.peek() != separator:
                raise DataError(f"{path}:{text.line}: " + _found(text.peek(), "`,` or `]` after an object"))
            text.advance(1)
            text.skip_blank()
        line = text.line
        yield line, text.take_object()
        text.skip_blank()
        separator = ","
    text.advance(1)
    text.skip_blank()
    if text.peek():
        raise DataError(f"{path}:{text.line}: something follows the end of the array")


class _Text:
    """The file's text from the current place on, as much of it as was needed so far."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.line = 1
        self._blocks = read_blocks(path, _PIECE)
        self._held = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character, empty at the end."""
        if self._at == len(self._held):
            self._read(_PIECE)
        return self._held[self._at : self._at + 1]

    def advance(self, count: int) -> None:
        """Leave `count` characters that are held behind."""
        self.line += self._held.count("\n", self._at, self._at + count)
        self._at += count

    def skip_blank(self) -> None:
        """Go on to the next character that is not white space."""
        while self.peek():
            match = _BLANK.match(self._held, self._at)
            assert match is not None
            self.advance(match.end() - self._at)
            if self._at < len(self._held):
                return

    def take_object(self) -> dict[str, Any]:
        """The object that begins here. Raises `DataError`."""
        if self.peek() != "{":
            raise DataError(f"{self.path}:{self.line}: " + _found(self.peek(), "an object"))
        piece = _PIECE
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
                break
            except json.JSONDecodeError as error:
                # Wrong, or only not read to its end yet: the end of the file decides.
                line = self.line + self._held.count("\n", self._at, error.pos)
                if not self._read(piece):
                    raise DataError(f"{self.path}:{line}: not JSON ({error.msg}); is the file whole?") from error
                piece *= 2
            except ValueError as error:
                raise too_long(self.path, self.line) from error
            except RecursionError:
                raise DataError(f"{self.path}:{self.line}: JSON nested too deeply") from None
        if self._held.find("\\ud", self._at, end) >= 0 or self._held.find("\\uD", self._at, end) >= 0:
            refuse_surrogates(value, self.path, self.line)
        self.advance(end - self._at)
        found: dict[str, Any] = value
        return found

    def _read(self, characters: int) -> bool:
        """Hold at least so many characters more, if there are so many; false at the file's end."""
        pieces = [self._held[self._at :]]
        room = characters
        for block in self._blocks:
            pieces.append(block)
            room -= len(block)
            if room <= 0:
                break
        self._held, self._at = "".join(pieces), 0
        return room < characters


def _found(character: str, expected: str) -> str:
    return f"expected {expected}, got {character!r}" if character else f"the file ends where {expected} should be"
