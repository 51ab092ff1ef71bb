"""BM25 by bm25s: the lexical baseline, and the source of the first negatives.

Tokens: lower-cased runs of two or more word characters, English stop words removed, Snowball-stemmed. The defaults
k1 = 0.9, b = 0.4 and the Lucene variant (Kamphuis et al., ECIR 2020) are those of the MS MARCO and BEIR baselines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.index.ids import IdTable
from ance_fast.index.result import SearchResult, checked_k

METHODS = ("robertson", "lucene", "atire", "bm25l", "bm25+")


class Bm25:
    """Use `Bm25.build`. `ids` are the document ids, `IdTable`; None as scorer means that no document has a word."""

    def __init__(self, scorer: Any, ids: IdTable, stopwords: Any, stemmer: Any) -> None:
        self.ids = ids
        self._scorer = scorer
        self._stopwords = stopwords
        self._stemmer = stemmer

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        ids: Any = None,
        *,
        method: str = "lucene",
        k1: float = 0.9,
        b: float = 0.4,
        stopwords: str | Sequence[str] | None = "en",
        stemmer: str | None = "english",
        show_progress: bool = False,
    ) -> Bm25:
        """Index texts (streamed: only their words are kept).

        Args:
            texts: documents, title included.
            ids: as many distinct strings; None numbers them.
            method: "lucene", "robertson", "atire", "bm25l" or "bm25+".
            stopwords: a language code bm25s knows, a list of words, or None.
            stemmer: a Snowball language of PyStemmer, or None.

        Raises:
            ConfigError: unknown method, stop words or stemmer language; ids that do not match.
            MissingDependencyError: bm25s or PyStemmer is not installed.
        """
        if isinstance(texts, str):
            raise ConfigError("texts is one string; give an iterable of documents")
        if method not in METHODS:
            raise ConfigError(f"unknown BM25 method {method!r}; choose one of {', '.join(METHODS)}")
        bm25s = _import("bm25s")
        words = [] if stopwords is None else stopwords
        stem = None if stemmer is None else _stemmer(stemmer)
        try:
            tokens = bm25s.tokenize(texts, stopwords=words, stemmer=stem, show_progress=show_progress, leave=False)
        except ValueError as error:
            raise ConfigError(f"stop words {stopwords!r}: {error}") from error
        table = IdTable.from_ids(ids, len(tokens.ids))
        if not tokens.vocab:
            return cls(None, table, words, stem)
        scorer = bm25s.BM25(method=method, k1=k1, b=b)
        scorer.index(tokens, show_progress=show_progress, leave_progress=False)
        return cls(scorer, table, words, stem)

    def search(self, queries: Sequence[str], k: int, show_progress: bool = False) -> SearchResult:
        """The k best documents of each query, ordered by (-score, position).

        Documents that share no word with the query are not returned: the row is padded with -inf and -1.

        Raises:
            ConfigError: k below 1, or `queries` a single string.
        """
        if isinstance(queries, str):
            raise ConfigError("queries is one string; give a list of queries")
        k = checked_k(k)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), k), -1, dtype=np.int64)
        if self._scorer is None:
            return SearchResult(scores, positions, self.ids)
        tokens = _import("bm25s").tokenize(
            list(queries),
            stopwords=self._stopwords,
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=show_progress,
            leave=False,
        )
        for row, words in enumerate(tokens):
            known = self._scorer.get_tokens_ids(words)
            if known:
                best, found = _best(self._scorer.get_scores_from_ids(known), k)
                scores[row, : len(best)], positions[row, : len(best)] = best, found
        return SearchResult(scores, positions, self.ids)


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The at most k best positive scores and their positions, by (-score, position), also where the cut falls."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        threshold = np.partition(scores[found], len(found) - k)[len(found) - k]
        above = found[scores[found] > threshold]
        level = found[scores[found] == threshold]
        found = np.concatenate([above, level[: k - len(above)]])
    order = found[np.lexsort((found, -scores[found]))]
    return scores[order], order


def _stemmer(language: str) -> Any:
    try:
        return _import("Stemmer").Stemmer(language)
    except KeyError as error:
        raise ConfigError(f"PyStemmer has no stemmer for {language!r}; for example 'english'") from error


def _import(module: str) -> Any:
    import importlib

    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError("BM25 needs bm25s and PyStemmer: pip install 'ance_fast[bm25]'") from error
    # On import bm25s sets its own logger to DEBUG, which every handler of the program then shows.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return imported
