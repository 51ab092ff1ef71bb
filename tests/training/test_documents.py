"""Chunks of one document."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.token_store import IdColumn
from ance_fast.errors import ConfigError, DataError
from ance_fast.training.documents import documents_by_file, documents_by_id


def store(*ids: str) -> Any:
    cut = len(ids) // 2
    column = IdColumn(pa.chunked_array([list(ids[:cut]), list(ids[cut:])], pa.large_string()))

    class Store(SimpleNamespace):
        def __len__(self) -> int:
            return len(ids)

    return Store(ids=column, positions=column.positions)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("ab#", max_size=5), unique=True, min_size=1, max_size=12))
def test_ids_up_to_the_last_separator_name_the_document(ids: list[str]) -> None:
    ids = [*ids, "x#0"]
    numbers = documents_by_id("#", store(*ids))
    names = [one.rsplit("#", 1)[0] for one in ids]
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            assert (numbers[i] == numbers[j]) == (name == other)


def test_a_separator_that_no_id_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"document_separator='#': no passage id holds it, such as 'a-0'"):
        documents_by_id("#", store("a-0", "a-1"))


def test_a_file_names_documents_and_passages_it_lacks_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("c\tone\ngone\ttwo\na\tone\nb\ttwo\n", encoding="utf-8")
    numbers = documents_by_file(str(tmp_path / "d.tsv"), store("a", "b", "c", "d", "e"))
    assert numbers.dtype == np.int64
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: no lines; expected `passage <tab> document`"),
        ("a one\n", ":1: expected 2 columns separated by tabs"),
        ("a\tone\nb\tone\na\ttwo\n", ":3: passage 'a' is of another document in a line before"),
        ("\nx\tone\ny\tone\n", ":2: passage 'x' and all others are not in the corpus"),
    ],
)
def test_a_file_of_no_use_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        documents_by_file(str(path), store("a", "b"))
