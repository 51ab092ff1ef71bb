"""Scores of documents in chunks by their vectors: of each pair of a query and a document, that of its best chunk.

Chunks past a document's end never count here, whatever vector they have in an index.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ance_fast.data.chunked_documents import ChunkedDocuments

# Gathered vectors of a block of pairs: 64 MB as float32.
BLOCK_NUMBERS = 16 * 1024 * 1024


def pair_scores(
    queries: Tensor,
    chunks: Tensor,
    owner: np.ndarray,
    documents: np.ndarray,
    groups: ChunkedDocuments,
    *,
    cosine: bool = False,
) -> np.ndarray:
    """float32 [m]: the largest inner product (or cosine) of `queries[owner[i]]` with a chunk of `documents[i]`.

    queries: float32 [n, dim]; chunks: float32 [rows, dim], all rows of the store; owner, documents: int64 [m]. A
    document without tokens scores -inf.
    """
    scores = np.empty(len(documents), dtype=np.float32)
    block = max(1, BLOCK_NUMBERS // max(1, groups.most * chunks.shape[1]))
    for start in range(0, len(documents), block):
        part = slice(start, start + block)
        offsets, products = _products(queries, chunks, owner[part], documents[part], groups, cosine=cosine)
        scores[part] = _largest(products, offsets)
    return scores


def closest_chunks(
    queries: Tensor, chunks: Tensor, owner: np.ndarray, documents: np.ndarray, groups: ChunkedDocuments
) -> np.ndarray:
    """The row of each pair's best chunk, int64 [m]; of equal ones the first, and that of a document without tokens.

    Arguments as for `pair_scores`.
    """
    if not len(documents):
        return np.zeros(0, dtype=np.int64)
    offsets, products = _products(queries, chunks, owner, documents, groups)
    best = _largest(products, offsets)
    pair = np.repeat(np.arange(len(documents)), np.diff(offsets))
    places = np.flatnonzero(products == best[pair])
    owners, first = np.unique(pair[places], return_index=True)
    rows: np.ndarray = groups.starts[documents]
    rows[owners] = groups.rows_of(documents)[1][places[first]]
    return rows


def list_scores(
    queries: Tensor, chunks: Tensor, candidates: np.ndarray, groups: ChunkedDocuments, *, cosine: bool = False
) -> np.ndarray:
    """`pair_scores` of query i with the documents candidates[i], int [n, K] (-1: none): float32 [n, K], NaN there."""
    scores = np.full(candidates.shape, np.nan, dtype=np.float32)
    owner, column = np.nonzero(candidates >= 0)
    documents = candidates[owner, column].astype(np.int64)
    scores[owner, column] = pair_scores(queries, chunks, owner, documents, groups, cosine=cosine)
    return scores


def _largest(products: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The largest of each list, float32 [lists]; -inf of an empty one, for which `reduceat` takes its neighbour's."""
    largest = np.full(len(offsets) - 1, -np.inf, dtype=np.float32)
    some = np.diff(offsets) > 0
    if some.any():
        largest[some] = np.maximum.reduceat(products, offsets[:-1][some])
    return largest


def _products(
    queries: Tensor,
    chunks: Tensor,
    owner: np.ndarray,
    documents: np.ndarray,
    groups: ChunkedDocuments,
    *,
    cosine: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of each pair's chunks, and the products."""
    offsets, rows = groups.rows_of(documents)
    asked = queries[torch.from_numpy(np.repeat(owner, np.diff(offsets))).to(queries.device)]
    found = chunks[torch.from_numpy(rows).to(chunks.device)]
    products = (asked * found).sum(dim=1)
    if cosine:
        # A vector of zeros has no direction: its cosines are 0 as its products are, also with another of zeros.
        lengths = (torch.linalg.vector_norm(side, dim=1).clamp(min=1e-18) for side in (asked, found))
        for length in lengths:
            products = products / length
    return offsets, products.cpu().numpy()
