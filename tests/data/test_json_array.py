from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data import json_array
from ance_fast.data.json_array import read_json_objects
from ance_fast.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), max_size=5),
    st.sampled_from([None, 1, 4]),
    st.integers(1, 40),
    st.booleans(),
)
def test_every_object_comes_with_its_line_however_little_is_held(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]], indent: int | None, piece: int, ascii: bool
) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii)
    file.write_text(" \n" + text + "\n", encoding="utf-8-sig" if ascii else "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_PIECE", piece)
        found = list(read_json_objects(file))
    assert [value for _, value in found] == objects
    if indent:
        lines = ("\n" + text).split("\n")
        assert [number for number, line in enumerate(lines, 1) if line.startswith(" " * indent + "{")] == [
            line for line, _ in found
        ]


def test_an_array_on_one_line_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_PIECE", 1 << 14)
    file = tmp_path / "a.json"
    file.write_text("[" + ",".join(['{"a": "' + "x" * 1000 + '"}'] * 4000) + "]")
    reader = read_json_objects(file)
    next(reader)
    tracemalloc.start()
    try:
        assert sum(1 for _ in reader) == 3999
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()


def test_json_lines_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\n{"a": 1}\n\n{"b": 2}\n')
    assert list(read_json_objects(file)) == [(2, {"a": 1}), (4, {"b": 2})]
    file.write_text("")
    assert list(read_json_objects(file)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[\n {"a": 1},\n {"b": \n', r"a\.json:4: not JSON .*; is the file whole\?"),
        ('[\n {"a": 1}\n', r"a\.json:3: the file ends where `,` or `\]` after an object should be"),
        ('[\n {"a": 1} {"b": 2}]', r"a\.json:2: expected `,` or `\]` after an object, got '\{'"),
        ('[\n {"a": 1},\n 7]', r"a\.json:3: expected an object, got '7'"),
        ('[{"a": 1},]', r"a\.json:1: expected an object, got '\]'"),
        ('[{"a": 1}]\n[]', r"a\.json:2: something follows the end"),
        ('[\n{"a": "\\ud800"}]', r"a\.json:2: \\ud800 is half of a surrogate pair"),
        ("hello", r"a\.json:1: expected a JSON array of objects or one object a line, got 'h'"),
        ('[\n {"a": 1,\n  "b" 2}]', r"a\.json:3: not JSON \(Expecting ':' delimiter\)"),
        ('[\n {"a": ' + "9" * 5000 + "}]", r"a\.json:2: a number of thousands of digits"),
        ('[\n {"a": "\0"}]', r"a\.json:2: NUL byte"),
        (b'[\n\n {"a": "\xff"}]', r"a\.json:3: not UTF-8 \(byte 0xFF\)"),
        (b'[\n {"a": "\xc3', r"a\.json:2: not UTF-8 \(byte 0xC3\)"),
    ],
)
def test_what_is_no_array_of_objects_is_refused_with_file_and_line(
    tmp_path: Path, text: str | bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "_PIECE", 4)
    file = tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=expected):
        list(read_json_objects(file))
