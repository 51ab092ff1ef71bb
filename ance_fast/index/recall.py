"""How much of the exact result an approximate index finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index.result import SearchResult
from ance_fast.index.vectors import prepared_blocks, sample_rows, taken, vector_source

if TYPE_CHECKING:
    from ance_fast.index.index import Index


def recall_at_k(approximate: SearchResult | np.ndarray, exact: SearchResult | np.ndarray) -> float:
    """The mean share of the exact results of a query that are among the approximate ones.

    Results, or their positions [n, k] with -1 past the end. Queries without an exact result are left out; 1.0 without
    any. Raises `ConfigError` for different numbers of queries.
    """
    found, expected = (r.positions if isinstance(r, SearchResult) else np.asarray(r) for r in (approximate, exact))
    if len(found) != len(expected):
        raise ConfigError(f"recall of {len(found)} queries against the exact results of {len(expected)}")
    shares = [
        np.isin(row, approximate_row).mean()
        for approximate_row, row in zip(found, (row[row >= 0] for row in expected), strict=True)
        if len(row)
    ]
    return float(np.mean(shares)) if shares else 1.0


def sampled_recall(
    index: Index, embeddings: Any, k: int = 10, *, sample: int = 256, seed: int = 0, params: Any = None
) -> float:
    """Recall@k of `index` against exact search over `embeddings`, what it was built from.

    Queries are `sample` of the documents, drawn by `seed`, each searched for the others. Real queries lie further from
    the documents, and are found somewhat worse.
    """
    from ance_fast.index.index import Index

    source = vector_source(embeddings)
    rows = sample_rows(source.count, sample, seed)
    queries = taken(source, prepared_blocks(source, index.metric, str), rows)
    itself = (np.arange(len(rows) + 1), rows)
    exact = Index.over(embeddings, metric=index.metric, check=False).search(queries, k, exclude_positions=itself)
    return recall_at_k(index.search(queries, k, exclude_positions=itself, params=params), exact)
