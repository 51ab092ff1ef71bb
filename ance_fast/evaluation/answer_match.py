"""Whether passages hold the answers of questions, word by word: the measure of retrieval for question answering.

DPR's `has_answer` (Karpukhin et al., EMNLP 2020; github.com/facebookresearch/DPR): text is put into Unicode's form NFD
and cut into runs of letters, marks and numbers, and single other signs that are neither blanks nor control characters;
upper case counts as lower case; an answer is held where its words come in a row. `AnswerWords` does this for many
pairs, in C++ over passages that are cut once; `has_answer` is the rule itself, for one text.

What is a letter and what a blank is asked of the package `regex`, as DPR does, and what is lower case of Python.
"""

from __future__ import annotations

import functools
import os
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from ance_fast import _C
from ance_fast.errors import ConfigError

MATCHES = ("string", "regex", "kilt")

_LETTERS = r"[\p{L}\p{N}\p{M}]+"
_SIGN = r"[^\p{Z}\p{C}]"
_IN_WORD, _ALONE = 1, 2
_CODE_POINTS = 0x110000
# Its lower case depends on the letters around it.
_SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, as DPR's tokenizer cuts them."""
    return [word.lower() for word in _pattern().findall(unicodedata.normalize("NFD", text))]


def has_answer(answers: Iterable[str], text: str, match: str = "string") -> bool:
    """Whether `text` holds one of `answers`.

    match: "string", the words of an answer in a row; an answer without a word is in every text, as in DPR. "regex",
    the answers are patterns of the package `regex`, searched without regard to case (TREC questions); one that is no
    pattern matches nothing. "kilt", as KILT compares: without case, punctuation and articles, as a substring.

    Raises `ConfigError` for another match.
    """
    if match == "kilt":
        plain = _without_articles(text)
        return any(_without_articles(answer) in plain for answer in answers)
    if match == "regex":
        normal = unicodedata.normalize("NFD", text)
        return any(_searched(unicodedata.normalize("NFD", answer), normal) for answer in answers)
    if match != "string":
        raise ConfigError(f"match={match!r}: choose one of {', '.join(MATCHES)}")
    words = words_of(text)
    wanted = [words_of(answer) for answer in answers]
    return any(one == words[i : i + len(one)] for one in wanted for i in range(len(words) - len(one) + 1))


@dataclass(frozen=True)
class CutTexts:
    """Texts cut into words: of text i, numbers `words[offsets[i]:offsets[i + 1]]`, int32; 0 is a word of no answer.

    offsets: int64 [texts + 1].
    """

    words: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


class AnswerWords:
    """The answers of queries 0, 1, ... and the words they are made of; texts are cut into these words.

    threads: of `cut` and `match`; by default one a core. Their results do not depend on it.
    """

    def __init__(self, answers: Iterable[Sequence[str]], *, threads: int | None = None) -> None:
        given = [list(some) for some in answers]
        self._vocabulary = _C.Vocabulary(_code_points())
        self._threads = threads or os.cpu_count() or 1
        self._answers = self._vocabulary.learn(tuple(_normal(one) for some in given for one in some))
        self._offsets = np.concatenate([[0], np.cumsum([len(some) for some in given], dtype=np.int64)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def vocabulary_size(self) -> int:
        """Distinct words of all answers."""
        return len(self._vocabulary)

    def wordless(self) -> np.ndarray:
        """Queries with an answer that has no word, which every text holds; int64, ascending."""
        empty = np.flatnonzero(np.diff(self._answers[1]) == 0)
        return np.unique(np.searchsorted(self._offsets, empty, side="right") - 1)

    def cut(self, texts: Iterable[str]) -> CutTexts:
        """Cut texts into words, once for however many queries."""
        return CutTexts(*self._vocabulary.look_up(tuple(map(_normal, texts)), threads=self._threads))

    def match(self, queries: np.ndarray, texts: CutTexts, rows: np.ndarray) -> np.ndarray:
        """Whether text `rows[i]` holds an answer of query `queries[i]`: bool [pairs]; queries and rows int64 [pairs].

        Equal to `has_answer` for each pair. A query without answers finds nothing. Raises `IndexError` for a query or
        row that is not there.
        """
        found = np.empty(len(queries), dtype=np.bool_)
        pairs = (np.ascontiguousarray(queries, dtype=np.int64), np.ascontiguousarray(rows, dtype=np.int64))
        passages = (texts.words, texts.offsets)
        _C.match_answers(passages, self._answers, self._offsets, *pairs, found, threads=self._threads)
        return found


def _normal(text: str) -> str:
    """What the table of code points can cut: NFD, and where lower case is not a matter of one character, lower case."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFD", text)
    return " ".join(words_of(text)) if _SIGMA in text else text


@functools.cache
def _pattern() -> regex.Pattern[str]:
    return regex.compile(f"{_LETTERS}|{_SIGN}", flags=regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)


@functools.cache
def _code_points() -> np.ndarray:
    """Class and lower case of each code point, as the extension wants them: uint32 [0x110000]."""
    every = "".join(map(chr, range(_CODE_POINTS)))
    flags = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
    table = np.zeros(_CODE_POINTS, dtype=np.uint32)
    for pattern, kind in ((f"{_SIGN}+", _ALONE), (_LETTERS, _IN_WORD)):
        for found in regex.finditer(pattern, every, flags=flags):
            table[found.start() : found.end()] = kind << 24
    # The letters whose lower case is not one character of its own: sigma, and one that NFD takes apart.
    alone = every.replace(_SIGMA, "a").replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "a")
    lower = np.frombuffer(alone.lower().encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return table | lower


@functools.lru_cache(maxsize=1 << 16)
def _compiled(pattern: str) -> regex.Pattern[str] | None:
    try:
        return regex.compile(pattern, flags=regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError):
        return None


def _searched(pattern: str, text: str) -> bool:
    compiled = _compiled(pattern)
    return compiled is not None and compiled.search(text) is not None


def _without_articles(text: str) -> str:
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(regex.sub(r"\b(a|an|the)\b", " ", plain).split())
