"""Many queries against inverted lists, list by list instead of query by query.

Each list is scored once, by a matrix product with all queries that visit it, where an ordinary search reads it again
for each of them. The parts are those of `faiss.contrib.big_batch_search`, without its loop over them, which prints
a line of progress a list whatever its `verbose` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BULK_QUERIES = 4096
# Multiply-adds a list costs a query, for each of the k neighbours that are then merged with those of other lists: with
# fewer the merging takes longer than the matrix product saves (measured: 0.3x at 200, 1.9x at 3,600, 3.4x at 7,000).
BULK_WORK = 1000
PASS_BYTES = 512 * 2**20


def searches_in_bulk(faiss: Any, index: Any) -> bool:
    """Whether `index` has lists that can be searched so: IVF of whole vectors.

    What the contributed loop does about codes that are residuals is right for L2 distances only.
    """
    return type(index) is faiss.IndexIVFFlat and not index.by_residual


def prefers_bulk(index: Any, queries: int, k: int) -> bool:
    """Whether so many queries are worth it on this index."""
    return queries >= BULK_QUERIES and index.ntotal / index.nlist * index.d >= BULK_WORK * k


def bulk_search(faiss: Any, index: Any, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
    """As `index.search` with `nprobe`: scores float32 and labels int64 [n, k], -1 past the end."""
    from faiss.contrib.big_batch_search import BigBatchSearcher, BlockComputer

    def knn(found: np.ndarray, vectors: np.ndarray, k: int, metric: int) -> tuple[np.ndarray, np.ndarray]:
        # No more neighbours than a list has: the loop would take the padding for documents.
        best: tuple[np.ndarray, np.ndarray] = faiss.knn(found, vectors, min(k, len(vectors)), metric=metric)
        return best

    scores = np.empty((len(queries), k), dtype=np.float32)
    labels = np.empty((len(queries), k), dtype=np.int64)
    step = max(BULK_QUERIES, PASS_BYTES // (4 * index.d + 12 * k + 4 * nprobe))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        # Handed over, so that the index's own nprobe, which other threads see, stays as it is.
        _, lists = index.quantizer.search(queries[part], nprobe)
        search: Any = BigBatchSearcher(index, queries[part], k)
        block = BlockComputer(index, method="knn_function", knn=knn)
        search.decode_func, search.by_residual = block.decode_func, block.by_residual
        search.q_assign = lists.astype(np.int32)
        search.reorder_assign()
        for number in range(index.nlist):
            visitors, found, ids, vectors = search.prepare_bucket(number)
            best, rows = block.block_search(found, vectors, ids, k)
            search.add_results_to_heap(visitors, best, ids, rows)
        search.rh.finalize()
        scores[part], labels[part] = search.rh.D, search.rh.I
    return scores, labels
