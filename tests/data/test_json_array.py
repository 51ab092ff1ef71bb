from __future__ import annotations

import json
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
)
def test_every_object_comes_with_its_line_however_little_is_held(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]], indent: int | None, piece: int
) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    text = json.dumps(objects, indent=indent)
    file.write_text(" \n" + text + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_PIECE", piece)
        found = list(read_json_objects(file))
    assert [value for _, value in found] == objects
    if indent:
        lines = ("\n" + text).split("\n")
        assert [number for number, line in enumerate(lines, 1) if line.startswith(" " * indent + "{")] == [
            line for line, _ in found
        ]


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
    ],
)
def test_what_is_no_array_of_objects_is_refused_with_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError, match=expected):
        list(read_json_objects(file))
