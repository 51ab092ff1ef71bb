from __future__ import annotations

from typing import Any

import pytest

from ance_fast.data.document_fields import FieldNames, Fields, make_document
from ance_fast.data.records import Document
from ance_fast.errors import DataError


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("_id", "title", "text", "metadata"), ("_id", "text", "title")),  # BEIR
        (("docid", "title", "text"), ("docid", "text", "title")),  # Tevatron
        (("id", "contents"), ("id", "contents", None)),  # Pyserini
        (("pid", "passage", "spans", "docid"), ("pid", "passage", None)),  # MS MARCO v2 passages
        (("docid", "url", "title", "headings", "body"), ("docid", "body", "title")),  # MS MARCO v2 documents
        (("docno", "text"), ("docno", "text", None)),  # PyTerrier
        (("doc_id", "text"), ("doc_id", "text", None)),  # ir_datasets
    ],
)
def test_the_usual_names_of_every_format_are_known(present: tuple[str, ...], expected: tuple[str | None, ...]) -> None:
    assert FieldNames().among(present, "f:1") == Fields(*expected)


def test_names_that_are_given_win_over_usual_ones() -> None:
    present = ("id", "text", "title", "key", "abstract", "head")
    assert FieldNames("key", "abstract", "head").among(present, "f:1") == Fields("key", "abstract", "head")


@pytest.mark.parametrize(
    ("names", "present", "expected"),
    [
        (FieldNames(), ("text", "x"), "f:1: no id: none of `_id`, `id`, .* among `text`, `x`; say .* with [?]id=NAME"),
        (FieldNames(), ("id",), "f:1: no text: none of `text`, `contents`, .* among `id`; say .* with [?]text=NAME"),
        (FieldNames(text="body"), ("id", "text"), "f:1: no text: none of `body` among `id`, `text`"),
        (FieldNames(title="head"), ("id", "text", "title"), "f:1: no title: none of `head` among"),
        (FieldNames(), (), "among no fields at all"),
    ],
)
def test_missing_names_are_said(names: FieldNames, present: tuple[str, ...], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        names.among(present, "f:1")


def test_a_document_may_have_a_number_for_an_id_and_no_title() -> None:
    fields = Fields("id", "text", "title")
    assert make_document({"id": 7, "text": ""}, fields, "f:1") == Document("7", "", "")
    assert make_document({"id": "7", "text": "x", "title": None}, fields, "f:1") == Document("7", "x", "")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "x"}, "no `id`"),
        ({"id": "", "text": "x"}, "`id` must be a string that is not empty, not ''"),
        ({"id": None, "text": "x"}, "`id` must be a string that is not empty, not None"),
        ({"id": True, "text": "x"}, "`id` must be .* not True"),
        ({"id": "a"}, "no `text`"),
        ({"id": "a", "text": None}, "`text` must be a string, not null"),
        ({"id": "a", "text": ["x"]}, "`text` must be a string, not list"),
        ({"id": "a", "text": "x", "title": 3}, "`title` must be a string, not int"),
    ],
)
def test_missing_null_and_wrong_values_are_refused(record: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=f"^f:1: {expected}"):
        make_document(record, Fields("id", "text", "title"), "f:1")
