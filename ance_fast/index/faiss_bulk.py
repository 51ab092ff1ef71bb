"""Many queries against inverted lists, list by list instead of query by query.

Each list is scored once, by a matrix product with all queries that visit it, where an ordinary search reads it again
for each of them. The loop is `faiss.contrib.big_batch_search`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# From here on a list has enough queries for the matrix product to win.
BULK_QUERIES = 4096
PASS_BYTES = 512 * 2**20


def searches_in_bulk(faiss: Any, index: Any) -> bool:
    """Whether `index` has lists that can be searched so: IVF of whole vectors.

    What the contributed loop does about codes that are residuals is right for L2 distances only.
    """
    return type(index) is faiss.IndexIVFFlat and not index.by_residual


def bulk_search(faiss: Any, index: Any, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
    """As `index.search` with `nprobe`: scores float32 and labels int64 [n, k], -1 past the end."""
    from faiss.contrib.big_batch_search import big_batch_search

    def knn(found: np.ndarray, vectors: np.ndarray, k: int, metric: int) -> tuple[np.ndarray, np.ndarray]:
        # No more neighbours than a list has: the loop would take the padding for documents.
        vectors = vectors.reshape(-1, index.d)
        best: tuple[np.ndarray, np.ndarray] = faiss.knn(found, vectors, min(k, len(vectors)), metric=metric)
        return best

    scores = np.empty((len(queries), k), dtype=np.float32)
    labels = np.empty((len(queries), k), dtype=np.int64)
    step = max(BULK_QUERIES, PASS_BYTES // (4 * index.d + 12 * k + 4 * nprobe))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        # Handed over, so that the index's own nprobe, which other threads see, stays as it is.
        _, lists = index.quantizer.search(queries[part], nprobe)
        scores[part], labels[part] = big_batch_search(
            index, queries[part], k, method="knn_function", knn=knn, q_assign=lists.astype(np.int32)
        )
    return scores, labels
