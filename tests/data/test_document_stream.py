from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from ance_fast.data.dataset import Corpus
from ance_fast.data.document_batches import encode_rows, from_arrow
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


def test_a_duplicate_is_found_before_the_end_of_a_large_stream() -> None:
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
    assert [one.rows for one in slices] == [3, 3, 1]
    assert list(chain.from_iterable(from_arrow(one.batches) for one in slices)) == documents


def test_a_slice_of_long_texts_ends_early_and_at_the_same_place_however_the_corpus_goes_on() -> None:
    documents = [Document(str(number), "x" * 40 * (number % 3)) for number in range(12)]
    slices = list(document_slices(iter(documents), 8, characters=100))
    assert [one.rows for one in slices] == [3, 3, 3, 3]
    assert list(document_slices(iter(documents[:8]), 8, characters=100))[:2] == slices[:2]
    assert [one.rows for one in document_slices(iter([Document("a", "x" * 1000)] * 2), 8, characters=100)] == [1, 1]


def test_the_content_hash_is_that_of_all_rows_together() -> None:
    documents = [Document(str(number), "text", "title") for number in range(2500)]
    whole = hashlib.blake2b(digest_size=16)
    first, second = document_slices(iter(documents), 1500, content=whole)
    for one, expected in ((first, documents[:1500]), (second, documents[1500:])):
        assert one.content == hashlib.blake2b(encode_rows(expected), digest_size=16).hexdigest()
    assert whole.digest() == hashlib.blake2b(encode_rows(documents), digest_size=16).digest()
