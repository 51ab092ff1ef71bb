"""How found passages are shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.cli.commands.search import _excerpt

WORDS = st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=120)


@settings(deadline=None)
@given(WORDS, st.integers(0, 119))
def test_an_excerpt_is_whole_words_of_the_text_and_holds_the_one_searched_for(words: list[str], place: int) -> None:
    place %= len(words)
    words = [*words[:place], "needle", *words[place + 1 :]]
    text = " ".join(words)
    shown = _excerpt("\n ".join(words), r"(?i)\b(needle)", width=120)
    inside = shown.strip("…")
    assert len(inside) <= 120
    assert "needle" in inside.split(" ")
    assert f" {inside} " in f" {text} "
    assert shown.startswith("…") == (not text.startswith(inside))
    assert (shown == text) == (len(text) <= 120)


@pytest.mark.parametrize("pattern", [None, "nowhere"])
def test_without_a_match_it_is_the_beginning(pattern: str | None) -> None:
    shown = _excerpt("some words " * 100, pattern, width=50)
    assert shown == "some words some words some words some words some…"


def test_text_without_blanks_is_cut_where_it_must_be() -> None:
    text = "東" * 300 + "京" + "都" * 300
    shown = _excerpt(text, re.escape("京"), width=60)
    assert re.fullmatch("…東{20}京都{39}…", shown)
