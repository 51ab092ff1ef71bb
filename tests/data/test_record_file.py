from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data import record_file
from ance_fast.data.record_file import RecordFile, write_records
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ConfigError, DataError

PAD = 1


def records(rows: list[list[int]], length: int, pad: int = PAD) -> bytes:
    """The file as microsoft/ANCE writes it, number by number."""
    padded = [[*row, *[pad] * (length - len(row))] for row in rows]
    pairs = zip(rows, padded, strict=True)
    return b"".join(struct.pack(">i", len(row)) + struct.pack(f"<{length}i", *ids) for row, ids in pairs)


def write(path: Path, rows: list[list[int]], length: int, pad: int = PAD) -> Path:
    path.write_bytes(records(rows, length, pad))
    meta = {"type": "int32", "total_number": len(rows), "embedding_size": length}
    path.with_name(path.name + "_meta").write_text(json.dumps(meta))
    return path


def as_tokens(rows: list[list[int]]) -> Tokens:
    offsets = np.cumsum([0, *map(len, rows)])
    return Tokens(np.array([token for row in rows for token in row], dtype=np.int64), offsets, 0)


token_rows = st.integers(1, 6).flatmap(
    lambda length: st.tuples(
        st.lists(st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=length), max_size=9), st.just(length)
    )
)


@settings(deadline=None, max_examples=40)
@given(token_rows, st.integers(1, 5), st.randoms(use_true_random=False))
def test_records_in_any_order_are_what_a_reader_of_single_records_finds(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[list[list[int]], int], piece: int, random: Any
) -> None:
    rows, length = made
    file = RecordFile(write(tmp_path_factory.mktemp("cache") / "passages", rows, length))
    order = [random.randrange(len(rows)) for _ in range(2 * len(rows))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_file, "_PIECE", piece)
        found = file.tokens(np.array(order, dtype=np.int64))
    assert len(file) == len(rows)
    assert [part.tolist() for part in np.split(found.values, found.offsets[1:-1])][: len(order)] == [
        rows[row] for row in order
    ]
    assert found.truncated == sum(len(rows[row]) == length for row in order)
    assert [file.record(row).tolist() for row in order] == [rows[row] for row in order]


@settings(deadline=None, max_examples=30)
@given(token_rows)
def test_what_is_written_is_their_file_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[list[list[int]], int]
) -> None:
    rows, length = made
    file = tmp_path_factory.mktemp("cache") / "passages"
    write_records(file, length, PAD, [as_tokens(rows[:4]), as_tokens(rows[4:])])
    assert file.read_bytes() == records(rows, length)
    assert len(RecordFile(file)) == len(rows)


def test_a_token_may_be_left_out_wherever_it_stands(tmp_path: Path) -> None:
    file = RecordFile(write(tmp_path / "passages", [[0, 1, 5, 1], [0, 2], [0, 1]], 4))
    found = file.tokens(np.arange(3), leave_out=1)
    assert (found.values.tolist(), found.offsets.tolist()) == ([0, 5, 0, 2, 0], [0, 2, 4, 5])


def test_a_last_record_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "passages", [[5], [6], [7]], 3)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"passages: byte 32: the last record has 11 of 16 bytes: the file was cut"):
        RecordFile(path)
    path.write_bytes(records([[5], [6]], 3))
    with pytest.raises(DataError, match=r"passages: 2 records, but .*passages_meta says total_number 3"):
        RecordFile(path)


@pytest.mark.parametrize("length", [4, 0, -1, 2**24])
def test_a_length_that_no_record_has_is_named_with_its_byte(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "passages", [[5], [6], [7]], 3)
    data = bytearray(path.read_bytes())
    data[16:20] = struct.pack(">i", length)
    path.write_bytes(data)
    assert RecordFile(path).tokens(np.array([0, 2])).values.tolist() == [5, 7]
    with pytest.raises(DataError, match=rf"passages: byte 16: record 1 says it has {length} tokens; .* hold 1 to 3"):
        RecordFile(path).tokens(np.arange(3))


def test_a_token_outside_the_vocabulary_is_named_with_its_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "passages", [[5, 6], [7], [8, -2]], 3)
    with pytest.raises(DataError, match=r"passages: byte 40: record 2 holds token -2; the tokenizer knows 0 to"):
        RecordFile(path).tokens(np.arange(3))
    with pytest.raises(DataError, match=r"passages: byte 20: record 1 holds token 7; the tokenizer knows 0 to 6"):
        RecordFile(path).tokens(np.array([0, 1]), limit=7)
    with pytest.raises(IndexError):
        RecordFile(path).tokens(np.array([3]))


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ("{", ":1: not JSON"),
        ("[]", ":1: expected a JSON object, got list"),
        ('{"type": "int64", "total_number": 1, "embedding_size": 3}', ":1: \"type\" is 'int64'"),
        ('{"type": "int32", "embedding_size": 3}', ':1: "total_number" must be a number'),
        ('{"type": "int32", "total_number": 1, "embedding_size": 0}', ':1: "embedding_size" must be a number of 1'),
        ('{"type": "int32", "total_number": ' + "9" * 5000 + ', "embedding_size": 3}', ":1: not JSON"),
        ('{"type": "int32", "total_number": true, "embedding_size": 3}', ':1: "total_number" must be'),
    ],
)
def test_a_malformed_meta_is_refused(tmp_path: Path, meta: str, expected: str) -> None:
    path = write(tmp_path / "passages", [[5]], 3)
    (tmp_path / "passages_meta").write_text(meta)
    with pytest.raises(DataError, match="passages_meta" + expected):
        RecordFile(path)
    (tmp_path / "passages_meta").unlink()
    with pytest.raises(DataError, match="passages_meta: no such file"):
        RecordFile(path)


def test_a_text_longer_than_its_record_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text 2 has 3 tokens; records hold 1 to 2"):
        write_records(tmp_path / "passages", 2, PAD, [as_tokens([[5]]), as_tokens([[6], [7, 7, 7]])])
    assert not list(tmp_path.iterdir())


def test_another_tokenizers_records_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    start, pad = tokenizer.cls_token_id, tokenizer.pad_token_id
    RecordFile(write(tmp_path / "a", [[start, 9], [start, 9, 9]], 3, pad)).refuse_other(tokenizer)
    with pytest.raises(DataError, match=f"b: byte 16: record 1 begins with token 9, this tokenizer's is {start}"):
        RecordFile(write(tmp_path / "b", [[start], [9]], 3, pad)).refuse_other(tokenizer)
    with pytest.raises(DataError, match=f"c: byte 0: record 0 is padded with 7, this tokenizer's is {pad}"):
        RecordFile(write(tmp_path / "c", [[start]], 3, 7)).refuse_other(tokenizer)
    with pytest.raises(DataError, match=f"d: byte 8: record 0 holds token {len(tokenizer)}; the tokenizer knows"):
        RecordFile(write(tmp_path / "d", [[start, len(tokenizer)]], 3, pad)).refuse_other(tokenizer)


def test_the_hash_tells_every_change_and_not_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_file, "_HASHED", 4)
    path = write(tmp_path / "passages", [[5, 6], [7], [8]], 3)
    whole = RecordFile(path).digest()
    assert RecordFile(path).digest(threads=3) == whole
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert RecordFile(path).digest() != whole
