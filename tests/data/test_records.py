from __future__ import annotations

import pytest

from ance_fast.data.records import Document


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [("A title", "a text", "A title a text"), ("", " a text ", "a text"), ("A title", "", "A title"), ("", "", "")],
)
def test_the_full_text_is_title_and_text_joined_and_stripped(title: str, text: str, expected: str) -> None:
    assert Document("d", text, title).full_text == expected
