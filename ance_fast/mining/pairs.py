"""(anchor, positive) texts as rows: distinct queries, distinct passages, and which belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError


@dataclass(frozen=True)
class Pairs:
    """Query i's positives are `rows[offsets[i] : offsets[i + 1]]` (both int64), rows of `corpus`, each once.

    Attributes:
        queries, corpus: distinct texts in the order in which they first came.
        most: the largest number of pairs of one query, repeated pairs counted.
    """

    queries: list[str]
    corpus: list[str]
    offsets: np.ndarray
    rows: np.ndarray
    most: int

    @property
    def owners(self) -> np.ndarray:
        """The query of each entry of `rows`, int64."""
        return np.repeat(np.arange(len(self.queries)), np.diff(self.offsets))


def read_pairs(anchors: Sequence[Any], positives: Sequence[Any], corpus: Sequence[Any] | None = None) -> Pairs:
    """Pairs of equal anchors are one query with several positives; `corpus` comes before positives that it lacks.

    Raises `ConfigError`: no pairs, another number of anchors than positives, something that is not a text.
    """
    anchors, positives, corpus = list(anchors), list(positives), [] if corpus is None else list(corpus)
    for name, values in (("anchor", anchors), ("positive", positives), ("corpus", corpus)):
        wrong = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
        if wrong is not None:
            raise ConfigError(f"{name} {wrong} is {type(values[wrong]).__name__}, expected a text")
    if not anchors:
        raise ConfigError("the dataset is empty; give at least one pair")
    if len(anchors) != len(positives):
        raise ConfigError(f"{len(anchors)} anchors and {len(positives)} positives; give one positive an anchor")
    rows = {text: row for row, text in enumerate(dict.fromkeys([*corpus, *positives]))}
    owned: dict[str, dict[int, None]] = {}
    counts: dict[str, int] = {}
    for anchor, positive in zip(anchors, positives, strict=True):
        owned.setdefault(anchor, {})[rows[positive]] = None
        counts[anchor] = counts.get(anchor, 0) + 1
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in owned.values()])]).astype(np.int64)
    flat = np.array([row for found in owned.values() for row in found], dtype=np.int64)
    return Pairs(list(owned), list(rows), offsets, flat, max(counts.values()))
