"""Mined rows as columns of texts: the four forms of sentence-transformers' `mine_hard_negatives`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ance_fast.mining.pairs import Pairs
from ance_fast.mining.search import Mined

Columns = dict[str, list[Any]]


def triplets(pairs: Pairs, mined: Mined, anchor: str, positive: str, scores: bool) -> Columns:
    """A row for each (query, positive, negative): anchor, positive, `negative`[, `scores`: of the two]."""
    owner = pairs.owners
    pair, slot = np.nonzero(mined.rows[owner] >= 0)
    columns: Columns = {
        anchor: _take(pairs.queries, owner[pair]),
        positive: _take(pairs.corpus, pairs.rows[pair]),
        "negative": _take(pairs.corpus, mined.rows[owner[pair], slot]),
    }
    if scores:
        both = (mined.positive_scores[pair], mined.scores[owner[pair], slot])
        columns["scores"] = np.stack(both, axis=1).tolist()
    return columns


def tuples(pairs: Pairs, mined: Mined, anchor: str, positive: str, scores: bool) -> Columns:
    """A row for each (query, positive) with all its negatives: anchor, positive, `negative_1`, ...[, `scores`]."""
    owner = pairs.owners
    whole = np.flatnonzero((mined.rows[owner] >= 0).all(axis=1))
    columns: Columns = {
        anchor: _take(pairs.queries, owner[whole]),
        positive: _take(pairs.corpus, pairs.rows[whole]),
    }
    for slot, rows in enumerate(mined.rows[owner[whole]].T, 1):
        columns[f"negative_{slot}"] = _take(pairs.corpus, rows)
    if scores:
        columns["scores"] = np.c_[mined.positive_scores[whole], mined.scores[owner[whole]]].tolist()
    return columns


def labeled_pairs(pairs: Pairs, mined: Mined, anchor: str, positive: str, scores: bool) -> Columns:
    """A row for each (query, passage), a query's positives before its negatives: texts, `label` 1 or 0 (or `score`)."""
    label = "score" if scores else "label"
    columns: Columns = {anchor: [], positive: [], label: []}
    for query, text in enumerate(pairs.queries):
        own = slice(pairs.offsets[query], pairs.offsets[query + 1])
        found = mined.rows[query][mined.rows[query] >= 0]
        columns[anchor] += [text] * (own.stop - own.start + len(found))
        columns[positive] += _take(pairs.corpus, np.concatenate([pairs.rows[own], found]))
        if scores:
            columns[label] += [*mined.positive_scores[own].tolist(), *mined.scores[query][: len(found)].tolist()]
        else:
            columns[label] += [1] * (own.stop - own.start) + [0] * len(found)
    return columns


def labeled_lists(pairs: Pairs, mined: Mined, anchor: str, positive: str, scores: bool) -> Columns:
    """A row for each (query, positive) with any negative: text, list of texts, `labels` (or `scores`) of the list."""
    label = "scores" if scores else "labels"
    columns: Columns = {anchor: [], positive: [], label: []}
    for pair, query in enumerate(pairs.owners):
        found = mined.rows[query][mined.rows[query] >= 0]
        if not len(found):
            continue
        columns[anchor].append(pairs.queries[query])
        columns[positive].append(_take(pairs.corpus, np.concatenate([pairs.rows[pair : pair + 1], found])))
        if scores:
            columns[label].append([float(mined.positive_scores[pair]), *mined.scores[query][: len(found)].tolist()])
        else:
            columns[label].append([1] + [0] * len(found))
    return columns


FORMATS: dict[str, Callable[[Pairs, Mined, str, str, bool], Columns]] = {
    "triplet": triplets,
    "n-tuple": tuples,
    "labeled-pair": labeled_pairs,
    "labeled-list": labeled_lists,
}


def _take(texts: list[str], rows: np.ndarray) -> list[str]:
    return [texts[row] for row in rows.tolist()]
