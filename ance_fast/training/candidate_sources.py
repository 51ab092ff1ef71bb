"""Where candidates come from beside the query's own search, and the scores they are filtered by.

Each source is a `NegativeTable`; `NegativeSampler.unite` merges them. The generation before ("momentum") is one as it
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ConfigError
from ance_fast.training.counter_hash import counter_hash
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, NegativeTable, choose_positives, random_table
from ance_fast.training.refresh import Snapshot, mine
from ance_fast.training.sampler_config import SamplerConfig

REFRESHED = ("index", "look-ahead", "momentum", "random")
"""Sources that a refresh can make by itself."""

# Positions of a token list enter its hash apart from its length.
_LENGTH = -1


def refreshed_candidates(
    snapshot: Snapshot,
    examples: Examples,
    sampler: NegativeSampler,
    previous: NegativeTable | None,
    *,
    topk: int,
    generation: int,
    step: int,
) -> NegativeTable:
    """The candidates of a generation: every source of `sampler.config` to depth `topk`, united, filtered, weighted.

    `previous` is the generation before, for "momentum"; in the first generation there is none.
    """
    config = sampler.config
    tables = []
    for source in config.sources:
        if source == "index":
            tables.append(mine(snapshot, examples, topk=topk, generation=generation, step=step))
        elif source == "look-ahead":
            tables.append(look_ahead(snapshot, examples, sampler.seed, topk=topk, generation=generation, step=step))
        elif source == "random":
            tables.append(random_candidates(examples, topk, sampler.seed, generation=generation, step=step))
        elif previous is not None:
            tables.append(replace(previous, source="momentum"))
    if not tables:
        return replace(random_table(examples), generation=generation, step=step)
    united = sampler.unite(tables, generation=generation, step=step)
    if not config.needs_scores:
        return sampler.select(united)
    scores, positive_scores = on_scale(
        config.scores,
        snapshot,
        examples,
        united,
        products=united.scores if united.sources == ("index",) else inner_products(snapshot, united.candidates),
    )
    return sampler.select(united, scores=scores, positive_scores=positive_scores)


def run_sampler(examples: Examples, text: str, *, seed: int, count: int) -> NegativeSampler:
    """The sampler of a training run from its setting (`SamplerConfig.parse`).

    Raises `ConfigError` for a setting that is not understood, or needs what a refresh does not make itself.
    """
    config = SamplerConfig.parse(text)
    contents = content_ids(examples.passages) if config.contents else None
    foreign = [source for source in config.sources if source not in REFRESHED]
    if foreign:
        raise ConfigError(
            f"sampler: sources={'+'.join(foreign)}: a refresh makes {', '.join(REFRESHED)}; "
            "unite other tables with NegativeSampler"
        )
    if config.needs_teacher or config.scores == "teacher":
        raise ConfigError("sampler: a refresh has no teacher scores; pass them to NegativeSampler.select")
    return NegativeSampler(examples, seed=seed, count=count, config=config, contents=contents)


def look_ahead(
    snapshot: Snapshot, examples: Examples, seed: int, *, topk: int, generation: int, step: int
) -> NegativeTable:
    """The passages nearest to one of the query's positives, drawn anew each generation (Sun et al., EMNLP 2022)."""
    every = np.arange(len(examples))
    chosen = choose_positives(examples, every, seed=seed, step=generation)
    rows, scores = snapshot.nearest(snapshot.passages[chosen], examples, topk)
    return NegativeTable(rows.astype(np.int32), scores.astype(np.float32), "look-ahead", generation, step)


def random_candidates(examples: Examples, count: int, seed: int, *, generation: int, step: int) -> NegativeTable:
    """`count` passages of the corpus for each query, uniformly, perhaps with repetitions; without scores (NaN)."""
    hashes = counter_hash(seed, generation, np.arange(len(examples))[:, None], -2, np.arange(count))
    rows = (hashes % np.uint64(len(examples.passages))).astype(np.int32)
    return NegativeTable(rows, np.full(rows.shape, np.nan, dtype=np.float32), "random", generation, step)


def run_candidates(
    examples: Examples, run: Mapping[str, Mapping[str, float]], *, topk: int, source: str = "run"
) -> NegativeTable:
    """The best `topk` of a run (query id -> {document id: score}), of BM25 or of another model.

    Equal scores: the passage with the smaller row first. Queries and documents that are not in the examples are left
    out; a query that the run lacks has no candidates.
    """
    ids = list(examples.queries.ids)
    lists = [run.get(query, {}) for query in ids]
    counts = np.array([len(documents) for documents in lists], dtype=np.int64)
    owners = np.repeat(np.arange(len(ids)), counts)
    rows = examples.passages.positions([document for documents in lists for document in documents])
    scores = np.fromiter((s for documents in lists for s in documents.values()), dtype=np.float64, count=len(rows))
    known = rows >= 0
    owners, rows, scores = owners[known], rows[known], scores[known]
    order = np.lexsort((rows, -scores, owners))
    owners, rows, scores = owners[order], rows[order], scores[order]
    counts = np.bincount(owners, minlength=len(ids))
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = ranks < topk
    shape = len(ids), max(1, min(topk, int(counts.max(initial=0))))
    candidates, table_scores = np.full(shape, -1, dtype=np.int32), np.full(shape, -np.inf, dtype=np.float32)
    candidates[owners[kept], ranks[kept]] = rows[kept]
    table_scores[owners[kept], ranks[kept]] = scores[kept]
    return NegativeTable(candidates, table_scores, source, 0, 0)


def inner_products(snapshot: Snapshot, candidates: np.ndarray) -> np.ndarray:
    """Inner product of each query and its candidates: float32 [queries, K], NaN past the end."""
    scores = np.full(candidates.shape, np.nan, dtype=np.float32)
    # Gathered passages of a block: about 64 MB at 200 candidates of 768 numbers.
    for start in range(0, len(candidates), 128):
        rows = candidates[start : start + 128]
        products = np.einsum("nd,nkd->nk", snapshot.queries[start : start + 128], snapshot.passages[rows])
        scores[start : start + 128] = np.where(rows >= 0, products, np.nan)
    return scores


def on_scale(
    scale: str, snapshot: Snapshot, examples: Examples, table: NegativeTable, *, products: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates' and positives' scores as "inner_product", "centred" or "cosine", from the candidates' inner products.

    Returns float32 [queries, K] and [P]; "centred" is less the query's inner product with the corpus' mean passage.
    """
    pairs = examples.pairs
    positive = np.einsum("nd,nd->n", snapshot.queries[pairs[:, 0]], snapshot.passages[pairs[:, 1]])
    if scale == "centred":
        centre = snapshot.queries @ snapshot.passages.mean(axis=0, dtype=np.float64).astype(np.float32)
        return products - centre[:, None], positive - centre[pairs[:, 0]]
    if scale == "cosine":
        queries, passages = _lengths(snapshot.queries), _lengths(snapshot.passages)
        cosine = products / (queries[:, None] * passages[table.candidates])
        return cosine, positive / (queries[pairs[:, 0]] * passages[pairs[:, 1]])
    return products, positive


def _lengths(vectors: np.ndarray) -> np.ndarray:
    # A vector of zeros has no direction: its cosines are 0 as its products are.
    return np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors, vectors)), np.float32(1e-30))


def content_ids(store: TokenStore) -> np.ndarray:
    """A number for the token list of each row, int64 [rows]: equal for equal lists, else different but for 2^-64."""
    pieces = []
    for values, offsets in store.shards:
        offsets = offsets.astype(np.int64)
        lengths = np.diff(offsets)
        places = np.arange(offsets[-1] - offsets[0]) - np.repeat(offsets[:-1] - offsets[0], lengths)
        hashes = counter_hash(places, values[offsets[0] : offsets[-1]])
        with np.errstate(over="ignore"):
            # Differences of running sums modulo 2^64 are exact; an empty list has none.
            sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashes, dtype=np.uint64)])
            ends = offsets - offsets[0]
            pieces.append(counter_hash(_LENGTH, lengths, (sums[ends[1:]] - sums[ends[:-1]]).view(np.int64)))
    return np.concatenate(pieces).view(np.int64) if pieces else np.zeros(0, dtype=np.int64)
