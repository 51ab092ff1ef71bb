from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.text_lines import read_columns, read_json_lines, read_lines, warn_counted
from ance_fast.errors import DataError


def message_of(path: Path, read=read_lines) -> str:
    with pytest.raises(DataError) as caught:
        list(read(path))
    return str(caught.value)


def test_lines_are_numbered_from_one_and_keep_nothing_of_their_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\n\ntwo \nlast")
    assert list(read_lines(file)) == [(1, "one"), (2, ""), (3, "two "), (4, "last")]


def test_a_gz_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("é\nb\n".encode()))
    assert list(read_lines(tmp_path / "a.txt.gz")) == [(1, "é"), (2, "b")]


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")
    assert list(read_lines(file)) == [(1, "a"), (2, "\ufeffb")]


def test_other_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a\u2028b\x0cc\u0085d\n", encoding="utf-8")
    assert list(read_lines(file)) == [(1, "a\u2028b\x0cc\u0085d")]


def test_latin_1_is_refused_with_line_byte_and_column(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"fine\n" + "un caf\xe9 noir\n".encode("latin-1"))
    assert message_of(file) == f"{file}:2: not UTF-8 (byte 0xE9 at column 7); convert the file, e.g. with iconv"


def test_utf_16_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text", encoding="utf-16")
    assert message_of(file).startswith(f"{file}:1: not UTF-8 (byte 0xFF at column 1)")


def test_a_cut_off_gz_file_is_an_error_after_its_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.gz"
    whole = gzip.compress("".join(f"line {number * 7919}\n" for number in range(5000)).encode())
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut-off gzip file" in message_of(file)
    assert message_of(file).startswith(f"{file}:")


def test_a_plain_file_named_gz_and_a_damaged_one_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "a.gz"
    file.write_text("not compressed\n")
    assert "damaged or cut-off gzip file" in message_of(file)
    whole = bytearray(gzip.compress(b"some words to compress\n" * 50))
    whole[len(whole) // 2] ^= 0xFF
    file.write_bytes(bytes(whole))
    assert "damaged or cut-off gzip file" in message_of(file)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert message_of(tmp_path / "none.txt") == f"{tmp_path / 'none.txt'}: no such file"
    assert "is a folder" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a": ', "not JSON (Expecting value at column 7)"),
        ("[1]", "expected a JSON object, got list"),
        ('{"a": "\\ud83d"}', "\\ud83d is half of a surrogate pair"),
        ("[" * 200_000, "JSON"),
        ('{"a": ' + "9" * 5000 + "}", "a number of thousands of digits"),
    ],
)
def test_a_line_that_is_no_json_object_is_refused_with_its_number(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"ok": 1}\n\n' + line + "\n")
    message = message_of(file, read_json_lines)
    assert message.startswith(f"{file}:3: ")
    assert expected in message


def test_a_whole_surrogate_pair_in_json_is_a_character(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": "\\ud83d\\ude00"}\n')
    assert list(read_json_lines(file)) == [(1, {"a": "\U0001f600"})]


def test_columns_keep_tabs_of_the_last_field_and_refuse_too_few(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("1\ta\tb\n\n2 no tab\n")
    rows = read_columns(file, 2)
    assert next(rows) == (1, ["1", "a\tb"])
    with pytest.raises(DataError, match=r"a\.tsv:3: expected 2 columns separated by tabs, got 1"):
        next(rows)


def test_a_counted_warning_is_one_message_or_none(caplog: pytest.LogCaptureFixture) -> None:
    warn_counted(logging.getLogger("x"), 0, "things", "a:1")
    assert not caplog.records
    warn_counted(logging.getLogger("x"), 3, "things", "a:1")
    assert [record.getMessage() for record in caplog.records] == ["3 things (first: a:1)"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])), max_size=8))
def test_any_text_without_line_ends_comes_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    file = tmp_path_factory.mktemp("lines") / "a.txt.gz"
    file.write_bytes(gzip.compress(("first\n" + "".join(line + "\n" for line in lines)).encode()))
    assert [line for _, line in read_lines(file)] == ["first", *lines]
