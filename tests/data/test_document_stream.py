from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from ance_fast.data import document_stream
from ance_fast.data.dataset import Corpus
from ance_fast.data.document_stream import document_slices, unique_documents
from ance_fast.data.msmarco import _documents
from ance_fast.data.records import Document
from ance_fast.errors import DataError


def test_documents_pairs_and_texts_are_taken() -> None:
    found = list(unique_documents([Document("a", "x", "t"), ("b", "y"), "z"]))
    assert found == [Document("a", "x", "t"), Document("b", "y"), Document("2", "z")]


@pytest.mark.parametrize("item", [None, 3, ("a",), ("a", "b", "c"), ("a", None), ["a", "b"], {"id": "a"}])
def test_anything_else_is_refused_with_its_place(item: Any) -> None:
    with pytest.raises(DataError, match="corpus item 1: expected a Document"):
        list(unique_documents(["fine", item]))


def test_an_id_that_comes_twice_is_named() -> None:
    with pytest.raises(DataError, match="document id 'a' comes twice"):
        list(unique_documents([("a", "x"), ("b", "y"), ("a", "x")]))


def test_documents_are_handed_on_without_reading_ahead() -> None:
    def pairs() -> Iterator[tuple[str, str]]:
        yield "a", "x"
        raise AssertionError("read ahead")

    assert next(unique_documents(pairs())) == Document("a", "x")


def test_an_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="half of a surrogate pair"):
        list(unique_documents([("\ud83d", "x")]))


def test_a_duplicate_is_found_before_the_end_of_a_large_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_stream, "_FIRST_CHECK", 2048)
    given: list[int] = []

    def pairs() -> Iterator[tuple[str, str]]:
        for number in range(100_000):
            given.append(number)
            yield str(max(1, number)), "x"

    stream = unique_documents(pairs())
    with pytest.raises(DataError, match="document id '1' comes twice"):
        deque(stream, maxlen=0)
    assert len(given) < 5000


def test_a_corpus_names_the_lines_of_its_duplicates(tmp_path: Path) -> None:
    file = tmp_path / "collection.tsv"
    file.write_text("a\tx\na\ty\n")
    with pytest.raises(DataError, match=r"collection\.tsv:2: document id 'a' again, first at"):
        list(unique_documents(Corpus(file, _documents)))


def test_slices_hold_every_document_once_in_order() -> None:
    documents = [Document(str(number), "") for number in range(7)]
    slices = list(document_slices(iter(documents), 3))
    assert [len(one) for one in slices] == [3, 3, 1]
    assert list(chain.from_iterable(slices)) == documents
