"""microsoft/ANCE's token caches: files of records of one size, one for each text.

    passages         a record: length, 4 bytes, big-endian; then embedding_size token ids, int32, little-endian,
                     padded on the right
    passages_meta    {"type": "int32", "total_number": records, "embedding_size": ids in each}

`train-query` and `dev-query` have the same form. A record's number is all that identifies it. The file is mapped and
cut into token lists by whole blocks, so that reading is bound by the disk. Source: github.com/microsoft/ANCE.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import atomic_file
from ance_fast.data.text_lines import read_lines
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ConfigError, DataError

META = "_meta"
_PIECE = 8192
_CHECKED = 4096
_HASHED = 1 << 22


class RecordFile:
    """One cache file and its `_meta`, mapped; `length` is the number of ids that a record has room for.

    Raises `DataError` with file and byte: no such file, a `_meta` that is malformed or does not fit, a last record that
    is cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        rows, self.length = _read_meta(self.path)
        self._size = 4 + 4 * self.length
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        whole, rest = divmod(self.path.stat().st_size, self._size)
        if rest:
            raise DataError(
                f"{self.path}: byte {whole * self._size}: the last record has {rest} of {self._size} bytes: the file "
                f"was cut short, or {_meta_of(self.path).name} belongs to another"
            )
        if whole != rows:
            raise DataError(f"{self.path}: {whole} records, but {_meta_of(self.path)} says total_number {rows}")
        self._words = np.memmap(self.path, dtype="<i4", mode="r") if whole else np.zeros(0, dtype="<i4")
        self._rows = whole

    def __len__(self) -> int:
        return self._rows

    def tokens(self, rows: np.ndarray, limit: int | None = None, leave_out: int | None = None) -> Tokens:
        """Token ids of records `rows` (int64, any order) without padding, int32; `truncated` counts full records.

        limit: ids must be below it (the size of the vocabulary). leave_out: an id that is left out wherever it stands.
        Raises `DataError` with file and byte: a length that no record can have, an id out of range; `IndexError`.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"records {rows.min()}..{rows.max()} of {len(self)}")
        if not len(rows):
            return Tokens(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64), 0)
        pieces = [self._piece(rows[start : start + _PIECE], limit, leave_out) for start in range(0, len(rows), _PIECE)]
        lengths = np.concatenate([lengths for _, lengths, _ in pieces])
        values = np.concatenate([values for values, _, _ in pieces])
        return Tokens(values, np.concatenate([[0], np.cumsum(lengths)]), sum(full for _, _, full in pieces))

    def record(self, number: int) -> np.ndarray:
        """Token ids of one record without padding, int32. Raises as `tokens`."""
        return self.tokens(np.array([number])).values

    def digest(self, threads: int = 1) -> str:
        """BLAKE2b (128 bits, hex) of the hashes of the file's parts; about a gigabyte a second and thread."""

        def of_part(start: int) -> bytes:
            return hashlib.blake2b(self._words[start : start + _HASHED].data, digest_size=16).digest()

        digest = hashlib.blake2b(b"%d %d\n" % (len(self), self.length), digest_size=16)
        with ThreadPoolExecutor(threads) as pool:
            for part in pool.map(of_part, range(0, len(self._words), _HASHED)):
                digest.update(part)
        return digest.hexdigest()

    def refuse_other(self, tokenizer: Any) -> None:
        """Raise `DataError` if the first records were not made by `tokenizer`, as far as they show.

        They must begin with its first special token, be padded with its padding token and hold ids it knows.
        """
        rows = np.arange(min(len(self), _CHECKED))
        values, offsets, _ = self.tokens(rows, limit=len(tokenizer))
        first = getattr(tokenizer, "cls_token_id", None)
        if first is not None:
            self._compare(rows, values[offsets[:-1]], first, "begins with token")
        lengths = np.diff(offsets)
        short = rows[lengths < self.length]
        padding = getattr(tokenizer, "pad_token_id", None)
        if padding is not None:
            self._compare(short, self._words[short * (self.length + 1) + 1 + lengths[short]], padding, "is padded with")

    def _compare(self, rows: np.ndarray, found: np.ndarray, expected: int, what: str) -> None:
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            row = int(rows[wrong[0]])
            raise DataError(
                f"{self.path}: byte {row * self._size}: record {row} {what} {found[wrong[0]]}, this tokenizer's is "
                f"{expected}: the cache was made with another"
            )

    def _piece(self, rows: np.ndarray, limit: int | None, leave_out: int | None) -> tuple[np.ndarray, np.ndarray, int]:
        heads = rows.astype(np.int64) * (self.length + 1)
        lengths = self._words[heads].byteswap().astype(np.int64)
        wrong = np.flatnonzero((lengths < 1) | (lengths > self.length))
        if len(wrong):
            row = int(rows[wrong[0]])
            raise DataError(
                f"{self.path}: byte {row * self._size}: record {row} says it has {lengths[wrong[0]]} tokens; records "
                f"here hold 1 to {self.length}"
            )
        ends = np.cumsum(lengths)
        # Only what is not padding is touched: a fifth of a passage's record.
        places = np.repeat(heads + 1 - (ends - lengths), lengths) + np.arange(ends[-1])
        values: np.ndarray = self._words[places]
        bad = np.flatnonzero((values < 0) | (values >= (limit or np.iinfo(np.int32).max)))
        if len(bad):
            row = int(rows[np.searchsorted(ends, bad[0], side="right")])
            raise DataError(
                f"{self.path}: byte {int(places[bad[0]]) * 4}: record {row} holds token {values[bad[0]]}; the "
                f"tokenizer knows 0 to {(limit or np.iinfo(np.int32).max) - 1}"
            )
        full = int((lengths == self.length).sum())
        if leave_out is not None:
            keep = values != leave_out
            lengths = np.diff(np.concatenate([[0], np.cumsum(keep)])[np.concatenate([[0], ends])])
            values = values[keep]
        return values, lengths, full


def write_records(
    path: str | Path, length: int, pad: int, blocks: Iterable[Tokens], beside: Callable[[], object] = lambda: None
) -> int:
    """Write a cache file and its `_meta`, each atomically, the latter last; returns the number of records.

    blocks: token ids of consecutive texts. beside: writes what belongs to the records; until it has, they have no
    `_meta`, without which no reader takes them.

    Raises `ConfigError` for a text of more than `length` tokens or of none.
    """
    path = Path(path)
    rows = 0
    with atomic_file(path) as staging, open(staging, "wb") as file:
        for values, offsets, _ in blocks:
            for start in range(0, len(offsets) - 1, _PIECE):
                here = offsets[start : start + _PIECE + 1]
                lengths = np.diff(here)
                wrong = np.flatnonzero((lengths < 1) | (lengths > length))
                if len(wrong):
                    raise ConfigError(
                        f"{path}: text {rows + wrong[0]} has {lengths[wrong[0]]} tokens; records hold 1 to {length}"
                    )
                block = np.full((len(lengths), 1 + length), pad, dtype="<i4")
                block[:, 0] = lengths.astype("<i4").byteswap()
                block[:, 1:][np.arange(length) < lengths[:, None]] = values[here[0] : here[-1]]
                file.write(block.data)
                rows += len(lengths)
        _meta_of(path).unlink(missing_ok=True)
    beside()
    with atomic_file(_meta_of(path)) as staging:
        meta = {"type": "int32", "total_number": rows, "embedding_size": length}
        staging.write_text(json.dumps(meta), encoding="utf-8")
    return rows


def _read_meta(path: Path) -> tuple[int, int]:
    """(records, ids in each). Raises `DataError`."""
    file = _meta_of(path)
    text = "\n".join(line for _, line in read_lines(file))
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise DataError(f"{file}:1: not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise DataError(f"{file}:1: expected a JSON object, got {type(meta).__name__}")
    if meta.get("type") != "int32":
        raise DataError(f'{file}:1: "type" is {meta.get("type")!r}; token ids are "int32"')
    found = []
    for name, least in (("total_number", 0), ("embedding_size", 1)):
        value = meta.get(name)
        if type(value) is not int or not least <= value < 1 << 40:
            raise DataError(f'{file}:1: "{name}" must be a number of {least} or more, not {value!r}')
        found.append(value)
    return found[0], found[1]


def _meta_of(path: Path) -> Path:
    return path.with_name(path.name + META)
