"""Passages that answer their query though nobody judged them: for question answering, where answers are strings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ance_fast.data.chunked_documents import StoreDocuments
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import DataError
from ance_fast.evaluation.answer_match import AnswerWords, words_of
from ance_fast.evaluation.open_qa import read_answer_lists
from ance_fast.training.examples import Examples

# Passages whose texts are in memory at once.
_BLOCK = 1 << 15


class AnswerMatch:
    """Whether passages hold one of their query's answers: DPR's rule (`evaluation.answer_match`), titles left out.

    answers: query index -> strings. Called with queries int64 [m] and passage rows int64 [m], returns bool [m]; each
    distinct passage is read and cut into words once a call.
    """

    def __init__(self, passages: TokenStore | StoreDocuments, answers: Mapping[int, list[str]]) -> None:
        self._passages = passages
        self._answers = dict(answers)
        # Queries without answers have no number of their own: there may be far more of them.
        self._asked = np.array(sorted(self._answers), dtype=np.int64)
        self._words: AnswerWords | None = None

    def __getstate__(self) -> tuple[TokenStore | StoreDocuments, dict[int, list[str]]]:
        return self._passages, self._answers

    def __setstate__(self, state: tuple[TokenStore | StoreDocuments, dict[int, list[str]]]) -> None:
        AnswerMatch.__init__(self, *state)

    def digest(self) -> bytes:
        """Equal for equal answers."""
        words = [(query, [words_of(one) for one in self._answers[query]]) for query in self._asked.tolist()]
        return hashlib.blake2b(repr(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def __call__(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if self._words is None:
            self._words = AnswerWords(self._answers[query] for query in self._asked.tolist())
        found = np.zeros(len(rows), dtype=np.bool_)
        places = np.flatnonzero(np.isin(queries, self._asked))
        places = places[np.argsort(rows[places], kind="stable")]
        distinct, number = np.unique(rows[places], return_inverse=True)
        for start in range(0, len(distinct), _BLOCK):
            texts = self._words.cut(self._passages.texts(distinct[start : start + _BLOCK]))
            here = slice(*np.searchsorted(number, [start, start + _BLOCK]))
            asked = np.searchsorted(self._asked, queries[places[here]])
            found[places[here]] = self._words.match(asked, texts, number[here] - start)
        return found


def answer_match_of(path: str, examples: Examples) -> AnswerMatch:
    """From JSON Lines {"query": id, "answers": [strings]}, or from DPR's and KILT's files (`read_answer_lists`).

    Raises `DataError` with file and line: another form, an answer without a word (all passages would hold it), a query
    that comes twice, a file in which no training query has an answer.
    """
    row_of = {query: row for row, query in enumerate(examples.queries.ids)}
    answers: dict[int, list[str]] = {}
    for line, query, some in read_answer_lists(Path(path)):
        blank = next((one for one in some if not words_of(one)), None)
        if blank is not None:
            raise DataError(f"{path}:{line}: the answer {blank!r} holds no word")
        if some and query in row_of:
            answers[row_of[query]] = some
    if not answers:
        raise DataError(f"{path}:1: no answers to a training query: another split, or another form of id?")
    return AnswerMatch(examples.corpus, answers)
