"""Answers in passages, beside DPR's own rule written out with the package `regex`."""

from __future__ import annotations

import threading
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.evaluation.answer_match import AnswerWords, _code_points, has_answer, words_of

# Every code point, surrogates too; letters that are hard, more often.
HARD = (
    "aA1.ςσΣİıſßǅéÉ\u0301\u0345\u00a0\u2028\u200b\u00ad\ufeff\ud800\u212a\u212b가ﬁⒶⓐ٣\U0001d7d8😀\U0010ffff'$^*(|\t\n"
)
texts = st.text(st.one_of(st.sampled_from(HARD), st.characters()), max_size=12)


def tokens(text: str) -> list[str]:
    """DPR's `SimpleTokenizer`, uncased."""
    pattern = regex.compile(
        r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", flags=regex.IGNORECASE + regex.UNICODE + regex.MULTILINE
    )
    return [found.group().lower() for found in pattern.finditer(unicodedata.normalize("NFD", text))]


def held(answers: list[str], text: str) -> bool:
    """DPR's `has_answer`."""
    words = tokens(text)
    for answer in answers:
        one = tokens(answer)
        if any(words[i : i + len(one)] == one for i in range(len(words) - len(one) + 1)):
            return True
    return False


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(texts, max_size=3), min_size=1, max_size=3), st.lists(texts, min_size=1, max_size=4))
@example([["ΟΔΟΣ", "Σ"], [""], []], ["οδος σ", "οδοσ", "", "ΟΔΟΣ.ς"])  # noqa: RUF001
@example([["C++", "a.b", "[x]*", "$5", "\\d"]], ["in c + +", "a . B", "[X] *", "5 $ 5", "\\ D", "axb"])
def test_every_pair_is_matched_as_dpr_does(answers: list[list[str]], passages: list[str]) -> None:
    # Texts made of the answers as well, or few would match.
    passages = passages + [f"{passage} {''.join(some)}z" for passage in passages for some in answers[:1]]
    passages += [" ".join([*some, passages[0]]).swapcase() for some in answers]
    words = AnswerWords(answers, threads=2)
    queries, rows = (np.ravel(part) for part in np.indices((len(answers), len(passages))))
    found = words.match(queries, words.cut(passages), rows)
    expected = [held(answers[query], passages[row]) for query, row in zip(queries, rows, strict=True)]
    assert found.tolist() == expected
    assert [has_answer(answers[q], passages[r]) for q, r in zip(queries, rows, strict=True)] == expected


def test_every_code_point_is_cut_and_lowered_as_dpr_does() -> None:
    # Without the one letter that has a way of its own; it is among the hard ones above.
    every = " ".join(chr(code) for code in range(0x110000) if code != 0x3A3)
    expected = words_of(every)
    words = AnswerWords([[every]])
    cut = words.cut([every])
    assert words.vocabulary_size == len(set(expected))
    numbers = dict(zip(dict.fromkeys(expected), range(1, len(expected) + 1), strict=False))
    assert np.array_equal(cut.words, np.fromiter(map(numbers.__getitem__, expected), np.int32))


@pytest.mark.parametrize(
    ("answer", "text", "holds"),
    [
        ("Paris", "The capital is PARIS.", True),
        ("Paris", "The Parisian capital.", False),
        ("new york", "New\n  York, New Jersey", True),
        ("york new", "New York, New Jersey", False),
        ("Zürich", "Zu\u0308rich lies on a lake", True),
        ("3.5", "about 3.5 metres", True),
        ("3.5", "about 3 5 metres", False),
        ("U.S.", "in the U.S. Army", True),
        ("$1,000 (approx.)", "it cost $ 1,000 ( APPROX . ) then", True),
        (".*", "anything at all", False),
        ("don't", "they don ' t know", True),
        ("", "anything", True),
        ("\u200b ", "", True),
    ],
)
def test_an_answer_is_held_where_its_words_come_in_a_row(answer: str, text: str, holds: bool) -> None:
    words = AnswerWords([["no such word", answer]])
    assert words.match(np.array([0]), words.cut([text]), np.array([0])).tolist() == [holds]
    assert has_answer([answer], text) is holds
    assert words.wordless().tolist() == ([0] if not tokens(answer) else [])


def test_an_answer_past_the_end_of_a_passage_is_not_looked_for_in_the_next() -> None:
    words = AnswerWords([["new york"], ["york"], ["end new"]])
    cut = words.cut(["the end new", "york", ""])
    assert words.match(np.array([0, 1, 2, 2, 1]), cut, np.array([0, 1, 0, 1, 2])).tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_many_texts_are_cut_the_same_by_any_number_of_threads(threads: int) -> None:
    generator = np.random.default_rng(0)
    passages = [" ".join(map(str, generator.integers(0, 3000, generator.integers(0, 60)))) for _ in range(3000)]
    answers = [[" ".join(map(str, generator.integers(0, 3000, 1 + query % 2)))] for query in range(500)]
    words = AnswerWords(answers, threads=threads)
    cut = words.cut(passages)
    in_order = dict.fromkeys(word for [answer] in answers for word in answer.split())
    numbers = {word: number for number, word in enumerate(in_order, 1)}
    assert cut.words.tolist() == [numbers.get(word, 0) for passage in passages for word in passage.split()]
    assert np.diff(cut.offsets).tolist() == [len(passage.split()) for passage in passages]
    queries, rows = generator.integers(0, 500, 20_000), generator.integers(0, 3000, 20_000)
    expected = [f" {answers[q][0]} " in f" {passages[r]} " for q, r in zip(queries, rows, strict=True)]
    assert words.match(queries, cut, rows).tolist() == expected


def test_other_threads_of_python_run_while_texts_are_cut() -> None:
    words, passages = AnswerWords([["a"]], threads=1), ("word " * 100_000,) * 60
    done = threading.Event()
    worker = threading.Thread(target=lambda: (words.cut(passages), done.set()))
    worker.start()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 5


@pytest.mark.parametrize(
    ("answers", "text", "holds"),
    [
        ([r"nove(m|mber)"], "in NOVEMBER 1918", True),
        ([r"^second"], "first\nsecond line", True),
        ([r"\bAB\b"], "abc", False),
        (["(unbalanced", "Zu\u0308rich"], "in Zürich", True),
        (["(unbalanced"], "(unbalanced", False),
    ],
)
def test_patterns_are_searched_without_regard_to_case(answers: list[str], text: str, holds: bool) -> None:
    assert has_answer(answers, text, "regex") is holds


def test_kilt_ignores_case_punctuation_and_articles() -> None:
    assert has_answer(["The U.S.A."], "in  a usa, today", "kilt")
    assert not has_answer(["U S A"], "the u.s.a.", "kilt")


def test_another_way_to_match_is_refused() -> None:
    with pytest.raises(ConfigError, match="match='exact': choose one of string, regex, kilt"):
        has_answer(["a"], "a", "exact")


def test_the_extension_refuses_what_it_cannot_read() -> None:
    vocabulary = _C.Vocabulary(_code_points())
    with pytest.raises(TypeError, match="texts must be str, got bytes"):
        vocabulary.learn((b"a",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"table must have shape \[1114112\], got \[5\]"):
        _C.Vocabulary(np.zeros(5, np.uint32))
    words = AnswerWords([["a"]])
    cut = words.cut(["a"])
    for queries, rows in (([1], [0]), ([0], [1]), ([-1], [0])):
        with pytest.raises(IndexError, match="out of range"):
            words.match(np.array(queries), cut, np.array(rows))
    broken = (cut.words, np.array([0, 2]))
    with pytest.raises(ValueError, match="passage offsets must rise from 0 to the number of values"):
        _C.match_answers(broken, broken, np.array([0, 0]), np.array([0]), np.array([0]), np.zeros(1, np.bool_))
