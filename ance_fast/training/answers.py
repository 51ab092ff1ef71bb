"""Passages that answer their query though nobody judged them: for question answering, where answers are strings."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping

import numpy as np

from ance_fast.data.chunked_documents import StoreDocuments
from ance_fast.data.text_lines import read_json_lines
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import DataError
from ance_fast.training.examples import Examples

# Letters with their marks and numbers together, any other sign that is not blank alone: DPR's `SimpleTokenizer`.
_WORDS = re.compile(r"[\w\u0300-\u036f]+|[^\w\s]")


class AnswerMatch:
    """Whether passages hold one of their query's answers: the words of it in a row, without regard to case.

    answers: query index -> strings. Called with queries int64 [m] and passage rows int64 [m], returns bool [m]; each
    distinct passage is read and split once a call, about 0.1 ms each.

    Source: `has_answer` of DPR (Karpukhin et al., EMNLP 2020).
    """

    def __init__(self, passages: TokenStore | StoreDocuments, answers: Mapping[int, list[str]]) -> None:
        self._passages = passages
        self._answers = {query: [_words(answer) for answer in some] for query, some in answers.items()}

    def digest(self) -> bytes:
        """Equal for equal answers."""
        return hashlib.blake2b(repr(sorted(self._answers.items())).encode(), digest_size=16).digest()

    def __call__(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = np.zeros(len(rows), dtype=np.bool_)
        asked = np.isin(queries, np.fromiter(self._answers, dtype=np.int64, count=len(self._answers)))
        places = np.flatnonzero(asked)
        last, text = -1, ""
        for place in places[np.argsort(rows[places], kind="stable")].tolist():
            if rows[place] != last:
                last = int(rows[place])
                text = _words(self._passages.document(last).full_text)
            found[place] = any(answer in text for answer in self._answers[int(queries[place])])
        return found


def read_answers(path: str, examples: Examples) -> AnswerMatch:
    """From JSON Lines, {"query": id, "answers": [strings]}.

    Raises `DataError` with file and line: another form, an answer without a word (all passages would hold it), a query
    that comes twice, a file in which no training query has an answer.
    """
    row_of = {query: row for row, query in enumerate(examples.queries.ids)}
    answers: dict[int, list[str]] = {}
    seen: dict[str, int] = {}
    for line, value in read_json_lines(path):
        query, some = value.get("query"), value.get("answers")
        if not isinstance(query, str) or not isinstance(some, list) or not all(isinstance(one, str) for one in some):
            raise DataError(f'{path}:{line}: expected {{"query": id, "answers": [strings]}}')
        if seen.setdefault(query, line) != line:
            raise DataError(f"{path}:{line}: query {query!r} again, first at {path}:{seen[query]}")
        blank = next((one for one in some if not _words(one).strip()), None)
        if blank is not None:
            raise DataError(f"{path}:{line}: the answer {blank!r} holds no word")
        if some and query in row_of:
            answers[row_of[query]] = some
    if not answers:
        raise DataError(f"{path}:1: no answers to a training query: another split, or another form of id?")
    return AnswerMatch(examples.corpus, answers)


def _words(text: str) -> str:
    """The words and signs of a text between blanks, so that one text's are in another's where its string is."""
    words = _WORDS.findall(unicodedata.normalize("NFD", text).lower())
    return f" {' '.join(words)} " if words else ""
