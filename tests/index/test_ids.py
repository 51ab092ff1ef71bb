from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index.ids import IdTable

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(deadline=None, max_examples=30)
@given(st.lists(texts, unique=True, max_size=30), st.lists(texts, max_size=10))
def test_find_and_take_are_inverse_and_unknown_ids_are_left_out(ids: list[str], others: list[str]) -> None:
    table = IdTable.from_ids(ids, len(ids))
    assert table.find([*others, *ids]) == {name: ids.index(name) for name in [*others, *ids] if name in ids}
    assert table.take(np.arange(len(ids))) == ids == table.to_list()


def test_ids_written_to_a_file_come_back_equal(tmp_path: Path) -> None:
    ids = ["a", "", "ü ☃", "x" * 1000]
    IdTable.from_ids(ids, 4).extended(IdTable.from_ids(["later"], 1)).write(tmp_path / "ids.arrow")
    assert IdTable.read(tmp_path / "ids.arrow").to_list() == [*ids, "later"]


def test_a_file_that_is_no_id_table_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "ids.arrow").write_bytes(b"ARROW1 but not really, padded to some length")
    with pytest.raises(ArtifactError, match=r"ids\.arrow: not an id table"):
        IdTable.read(tmp_path / "ids.arrow")


def test_a_repeated_id_is_named_with_both_rows() -> None:
    with pytest.raises(ConfigError, match=r"'b' is given twice \(rows 1 and 3\); 2 of 5"):
        IdTable.from_ids(["a", "b", "c", "b", "a"], 5)


def test_missing_ids_are_numbers_that_go_on_from_start() -> None:
    assert IdTable.from_ids(None, 3, start=5).to_list() == ["5", "6", "7"]


@pytest.mark.parametrize("ids", [np.array(["a", "b"]), np.array(["a", "b"], object), pa.array(["a", "b"]), ("a", "b")])
def test_every_sequence_of_strings_is_accepted(ids: object) -> None:
    assert IdTable.from_ids(ids, 2).to_list() == ["a", "b"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], "id 1 is a int"),
        (np.array([1, 2]), "id 1 is a int"),
        (["a", None], "null"),
        (pa.array([1, 2]), "Arrow type int64"),
        ("ab", "is the string 'ab'"),
        (["a"], "1 ids for 2 vectors"),
        (["a", "\ud800"], "must be strings"),
    ],
)
def test_ids_that_are_not_as_many_strings_are_refused(ids: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IdTable.from_ids(ids, 2)
