"""What one moment's vectors say of some training queries: searches, scores on the scale that a sampler reads.

A whole refresh looks at all queries over a snapshot (`snapshot_view`), rolling refresh at those of a batch over its
matrix; candidates are made from either by the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ance_fast.data.chunked_documents import ChunkedDocuments
from ance_fast.training.chunk_scores import BLOCK_NUMBERS, closest_chunks, list_scores, pair_scores
from ance_fast.training.examples import Examples
from ance_fast.training.refresh import Snapshot

TILE_ROWS = 65_536

Csr = tuple[np.ndarray, np.ndarray]
"""Offsets int64 [n + 1] and rows int64."""


@dataclass(frozen=True)
class View:
    """Some queries and the whole corpus, encoded.

    queries: int64 [n], which of the examples. vectors: float32 [n, dim] of these, passages: float32 [N, dim], on one
    device. documents: whose chunks these N are; what is called passages below are then documents, each scored by its
    best chunk.
    search: (vectors float32 [m, dim], excluded rows of each) -> rows int64 [m, K], scores float32 [m, K]: the nearest
        passages, best first, -1 and -inf past the end.
    centre: makes the mean passage, float32 [dim].
    exact: whether the scores that `search` finds are inner products of these vectors, not of approximations to them.
    freshen: called with passage rows (int64, any shape, -1 for none) before their vectors are read.
    """

    queries: np.ndarray
    vectors: Tensor
    passages: Tensor
    search: Callable[[Tensor, Csr], tuple[np.ndarray, np.ndarray]]
    centre: Callable[[], Tensor]
    freshen: Callable[[np.ndarray], None] = lambda rows: None
    exact: bool = True
    documents: ChunkedDocuments | None = None

    def rows(self, rows: np.ndarray) -> Tensor:
        """The vectors of these passages; of row 0 where there is none."""
        return self.passages[torch.from_numpy(rows.astype(np.int64).clip(min=0)).to(self.passages.device)]

    def closest(self, passages: np.ndarray) -> Tensor:
        """A vector of each query's passage, int64 [n]: of a document, that of the chunk closest to the query."""
        if self.documents is None:
            return self.rows(passages)
        every = np.arange(len(passages))
        return self.rows(closest_chunks(self.vectors, self.passages, every, passages, self.documents))

    def inner_products(self, candidates: np.ndarray) -> np.ndarray:
        """Of each query and its candidates (rows [n, K], -1 past the end): float32 [n, K], NaN past the end."""
        if self.documents is not None:
            return list_scores(self.vectors, self.passages, candidates, self.documents)
        scores = np.full(candidates.shape, np.nan, dtype=np.float32)
        block = max(1, BLOCK_NUMBERS // max(1, candidates.shape[1] * self.passages.shape[1]))
        for start in range(0, len(candidates), block):
            rows = candidates[start : start + block]
            products = torch.einsum("nd,nkd->nk", self.vectors[start : start + block], self.rows(rows)).cpu().numpy()
            scores[start : start + block] = np.where(rows >= 0, products, np.nan)
        return scores

    def positive_products(self, positives: Csr) -> np.ndarray:
        """Inner product of each query and each of its positives, float32 [P] in their order."""
        offsets, rows = positives
        owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        if self.documents is not None:
            return pair_scores(self.vectors, self.passages, owners, rows, self.documents)
        owner = torch.from_numpy(owners).to(self.vectors.device)
        return _by_tiles(lambda part: (self.vectors[owner[part]] * self.rows(rows[part])).sum(dim=1), len(rows))

    def on_scale(
        self, scale: str, candidates: np.ndarray, products: np.ndarray, positives: Csr
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the candidates [n, K] and of the positives [P], float32, from the candidates' inner products.

        scale: "inner_product"; "centred", less the query's inner product with the mean passage; "cosine".
        """
        offsets, rows = positives
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        positive = self.positive_products(positives)
        if scale == "centred":
            centre = (self.vectors * self.centre()).sum(dim=1).cpu().numpy()
            return products - centre[:, None], positive - centre[owner]
        if scale == "cosine" and self.documents is not None:
            given = self.vectors, self.passages
            return (
                list_scores(*given, candidates, self.documents, cosine=True),
                pair_scores(*given, owner, rows, self.documents, cosine=True),
            )
        if scale == "cosine":
            queries = _by_tiles(lambda part: _lengths(self.vectors[part]), len(self.vectors))
            lengths = self._passage_lengths(np.concatenate([candidates.ravel(), rows]))
            of_candidates = lengths[: candidates.size].reshape(candidates.shape)
            of_positives = lengths[candidates.size :]
            return products / (queries[:, None] * of_candidates), positive / (queries[owner] * of_positives)
        return products, positive

    def _passage_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Of these passages, float32; anything for -1. What comes up often is computed once."""
        if rows.size >= len(self.passages):
            return _by_tiles(lambda part: _lengths(self.passages[part]), len(self.passages))[rows]
        wanted, places = np.unique(rows, return_inverse=True)
        return _by_tiles(lambda part: _lengths(self.rows(wanted[part])), len(wanted))[places.ravel()]


def snapshot_view(snapshot: Snapshot, examples: Examples, *, topk: int, queries: np.ndarray | None = None) -> View:
    """The view of a snapshot on these queries (int64), by default on all; searches go to depth `topk`."""

    def search(vectors: Tensor, excluded: Csr) -> tuple[np.ndarray, np.ndarray]:
        return snapshot.nearest(vectors.numpy(), topk, excluded)

    def centre() -> Tensor:
        return torch.from_numpy(snapshot.passages.mean(axis=0, dtype=np.float64).astype(np.float32))

    vectors = snapshot.queries if queries is None else snapshot.queries[queries]
    asked = np.arange(len(examples)) if queries is None else queries
    passages = torch.from_numpy(snapshot.passages)
    return View(
        asked,
        torch.from_numpy(vectors),
        passages,
        search,
        centre,
        exact=snapshot.exact,
        documents=snapshot.documents,
    )


def _lengths(vectors: Tensor) -> Tensor:
    # A vector of zeros has no direction: its cosines are 0 as its products are, also with another of zeros.
    return torch.linalg.vector_norm(vectors, dim=1).clamp(min=1e-18)


def _by_tiles(values: Callable[[slice], Tensor], count: int) -> np.ndarray:
    """`values` of one slice after another, float32 [count]: what they gather stays small."""
    out = np.empty(count, dtype=np.float32)
    for start in range(0, count, TILE_ROWS):
        part = slice(start, min(start + TILE_ROWS, count))
        out[part] = values(part).cpu().numpy()
    return out
