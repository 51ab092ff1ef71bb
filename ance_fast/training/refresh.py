"""One refresh: encode everything with the current weights, index it, mine new negatives, measure.

This is the inner loop of ANCE (Xiong et al. 2021, algorithm 1) in its synchronous form: training waits, so every
negative is mined by exactly the weights it is first used with.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from ance_fast.data.chunked_documents import ChunkedDocuments
from ance_fast.data.chunks import SEPARATOR
from ance_fast.data.token_store import TokenStore
from ance_fast.encoding import encode_spans
from ance_fast.encoding.budget import default_budget
from ance_fast.encoding.stages import batches_on
from ance_fast.index import Index
from ance_fast.index.factory import is_flat
from ance_fast.models.encoder import Encoder
from ance_fast.progress import progress_bar
from ance_fast.training.chunk_scores import list_scores, pair_scores
from ance_fast.training.config import AnceConfig
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Snapshot:
    """The corpus and the training queries as one set of weights sees them; embeddings float32 [n, dim].

    documents: whose chunks the rows of `passages` are; passages that are asked for or found are then documents. Every
    one of `ranks` holds the whole of it.
    """

    passages: np.ndarray
    queries: np.ndarray
    index: Index
    ranks: Ranks = ALONE
    documents: ChunkedDocuments | None = None

    @property
    def exact(self) -> bool:
        """Whether the scores of `nearest` are `products` of these vectors."""
        # Chunks past a document's end can be found, but do not count in a loss.
        empty = self.documents is not None and bool((self.documents.filled < np.diff(self.documents.starts)).any())
        return is_flat(self.index.factory) and not empty

    def products(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Inner products of these queries (int64 [n]) with their candidates, int [n, K] (-1: none, anything there)."""
        if self.documents is None:
            return np.einsum("nd,nsd->ns", self.queries[queries], self.passages[candidates])
        vectors, passages = torch.from_numpy(self.queries[queries]), torch.from_numpy(self.passages)
        return list_scores(vectors, passages, candidates, self.documents)

    def best_positives(self, pairs: np.ndarray, count: int) -> np.ndarray:
        """The largest inner product of each of `count` queries with one of its passages, pairs int64 [P, 2]."""
        if self.documents is None:
            products = np.einsum("nd,nd->n", self.queries[pairs[:, 0]], self.passages[pairs[:, 1]])
        else:
            vectors, passages = torch.from_numpy(self.queries), torch.from_numpy(self.passages)
            products = pair_scores(vectors, passages, pairs[:, 0], pairs[:, 1], self.documents)
        best = np.full(count, -np.inf)
        np.maximum.at(best, pairs[:, 0], products)
        return best

    def nearest(
        self, vectors: np.ndarray, k: int, excluded: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` passages nearest to `vectors` float32 [n, dim], without those `excluded` for each (offsets int64
        [n + 1] and rows): rows and scores [n, k], -1 past the end. Each rank searches for its share of them."""
        count = len(self.passages) if self.documents is None else len(self.documents)
        k, (offsets, rows_out) = min(k, count), excluded

        def search(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            first, last = offsets[start], offsets[stop]
            theirs = offsets[start : stop + 1] - first, rows_out[first:last]
            if self.documents is not None:
                theirs = self.documents.all_rows(theirs)
            found = self.index.search_documents(vectors[start:stop], k, exclude_positions=theirs)
            return found.positions, found.scores

        rows, scores = self.ranks.rows(len(vectors), search)
        return rows, scores


def take_snapshot(
    encoder: Encoder,
    examples: Examples,
    *,
    factory: str,
    batch_tokens: int | None = None,
    queries: bool = True,
    ranks: Ranks = ALONE,
) -> Snapshot:
    """Encode the corpus (and, with `queries`, the training queries) and index the corpus.

    Each of `ranks` encodes its share; all of them get everything and index it.
    """
    passages = _encoded(encoder, examples.passages, "passages", batch_tokens, ranks)
    encoded = torch.zeros(0, encoder.dim)
    if queries:
        encoded = _encoded(encoder.for_queries, examples.queries, "queries", batch_tokens, ranks)
    ids, fingerprint = examples.passages.ids.arrow, encoder.fingerprint()
    if factory == "Flat":
        # Searched where it lies, on the encoder's device; the pipeline has checked that it is finite.
        index = Index.over(passages, ids, fingerprint=fingerprint, check=False)
    else:
        index = Index.build(passages, ids, factory=factory, fingerprint=fingerprint)
    if examples.documents is not None:
        index.set_documents(SEPARATOR, examples.documents)
    return Snapshot(passages.cpu().numpy(), encoded.cpu().numpy(), index, ranks, examples.documents)


def reciprocal_rank(snapshot: Snapshot, examples: Examples, table: NegativeTable, depth: int = 10) -> float:
    """Mean over the queries of `table` of 1 / rank of their best-scored positive, 0 beyond `depth`: what microsoft/ANCE
    prints of the training queries. The table's candidates must be the passages nearest to each query, best first, at
    least `depth` of them, positives that were found counted."""
    asked = np.arange(len(examples)) if table.queries is None else table.queries
    best = snapshot.best_positives(examples.pairs, len(examples))[asked]
    total = 0.0
    for start in range(0, len(asked), 1024):
        block = slice(start, start + 1024)
        candidates = table.candidates[block, :depth]
        scores = snapshot.products(asked[block], candidates)
        rank = 1 + ((scores > best[block, None]) & (candidates >= 0)).sum(axis=1)
        total += float((1.0 / rank)[rank <= depth].sum())
    return total / max(1, len(asked))


def corpus_index(
    encoder: Encoder, examples: Examples, config: AnceConfig, ranks: Ranks, passages: TokenStore | None = None
) -> Index:
    """The corpus of `examples`, or `passages` instead, encoded and indexed; see `take_snapshot`."""
    snapshot = take_snapshot(
        encoder,
        examples if passages is None else replace(examples, passages=passages),
        factory=config.index_factory,
        batch_tokens=config.batch_tokens,
        queries=False,
        ranks=ranks,
    )
    return snapshot.index


def _encoded(encoder: Encoder, store: TokenStore, what: str, batch_tokens: int | None, ranks: Ranks) -> torch.Tensor:
    # Not a measured budget: batches decide the last bits of the weights, and a run must be repeatable.
    budget = batch_tokens or default_budget(encoder.device)
    matrix = torch.zeros(len(store), encoder.dim, device=encoder.device)

    def encode(start: int, stop: int) -> None:
        # One bar on the terminal: that of the first rank's share stands for all.
        bar = progress_bar(f"encoding {what}", stop - start, what) if ranks.leads else nullcontext()
        with bar as advance:
            on_batch = batches_on(advance) if advance is not None else None
            encode_spans(encoder, store, [(start, stop)], resident=matrix, batch_tokens=budget, on_batch=on_batch)

    ranks.fill(matrix, encode)
    return matrix


def hardness(snapshot: Snapshot, examples: Examples, table: NegativeTable, *, sample: int = 20) -> dict[str, float]:
    """How hard the negatives of `table` are for the snapshot's weights.

    Over `sample` candidates a query (drawn uniformly, fixed seed), against the query's best-scored positive:
    `harder_than_positive` is the share that score above it, `margin` the mean of positive minus negative score.
    """
    generator = np.random.default_rng(0)
    best = snapshot.best_positives(examples.pairs, len(examples))
    queries = np.arange(len(examples)) if table.queries is None else table.queries
    best = best[queries]
    if table.candidates.shape[1]:
        columns = generator.integers(0, table.candidates.shape[1], (len(queries), sample))
        rows = np.take_along_axis(table.candidates, columns, axis=1)
    else:
        rows = generator.integers(0, len(examples.corpus), (len(queries), sample))
    differences = []
    for start in range(0, len(queries), 1024):
        block = slice(start, start + 1024)
        scores = snapshot.products(queries[block], rows[block])
        differences.append((best[block, None] - scores)[rows[block] >= 0])
    margin = np.concatenate(differences)
    if not len(margin):
        return {"harder_than_positive": 0.0, "margin": 0.0}
    return {"harder_than_positive": float((margin < 0).mean()), "margin": float(margin.mean())}
