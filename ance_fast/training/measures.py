"""What a new generation is measured by: how it differs from the one before, and what that is worth in loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ance_fast.training.batch import BatchMaker, TrainingBatch
from ance_fast.training.losses import batch_loss, loss_scale
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.refresh import Snapshot, hardness, reciprocal_rank
from ance_fast.training.refresher import RunParts
from ance_fast.training.sampler_config import SamplerConfig
from ance_fast.training.staleness import OVERLAP_DEPTH, IntervalStats, overlap

PROBE_QUERIES = 64

Embed = Callable[[np.ndarray, np.ndarray], Tensor]
"""Query indices [B] and rows of the token store [N] -> float32 [B + N, dim]."""


def compared(
    parts: RunParts, snapshot: Snapshot, old: NegativeTable, new: NegativeTable, step: int
) -> dict[str, float]:
    """The report of a generation whose table `new` replaces `old`; both are judged by the snapshot's weights.

    `hardness` of both (the old one's as "stale_..."), shares that the sampler left out, overlap@k, the loss of a
    probe on either, how high the training queries' own positives rank (where nothing else was left out of their
    lists), and where there are judgements the rates of `Judgements.shares` among the candidates. Where `new` is of
    a part of the queries (`query_chunks`), there is no overlap and no probe.
    """
    report = {f"stale_{name}": value for name, value in hardness(snapshot, parts.examples, old).items()}
    report |= hardness(snapshot, parts.examples, new)
    report |= new.filtered_shares()
    depth = ranked_depth(parts.sampler.config, parts.config.topk, new)
    if depth:
        report["train_RR@10"] = reciprocal_rank(snapshot, parts.examples, new, depth)
    if new.queries is not None:
        # The tables are of different queries: there is nothing that both have a list for.
        return report | judged_candidates(parts, new)
    if old.candidates.shape[1]:
        report[f"overlap@{OVERLAP_DEPTH}"] = float(overlap(old.candidates, new.candidates).mean())

    def embed(queries: np.ndarray, passages: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([snapshot.queries[queries], snapshot.passages[passages]]))

    report |= probe_losses(parts, old, new, step, probe_batches(parts), embed)
    return report | judged_candidates(parts, new)


def ranked_depth(sampler: SamplerConfig, topk: int, table: NegativeTable) -> int:
    """To which of the first ten ranks the candidates of `table` say who stands above a positive; 0: they do not.

    They do where they are what the queries' own search found, in its order and without gaps but for positives.
    """
    harmless = {"candidates", "positive", "beyond", *(["window"] if sampler.rank_min == 0 else [])}
    gaps = {reason for reason, count in table.filtered.items() if count} - harmless
    ordered = not sampler.needs_scores or sampler.scores == "inner_product"
    if table.sources != ("index",) or sampler.rank_min or gaps or not ordered:
        return 0
    return min(10, topk, sampler.rank_max or topk, sampler.keep or topk)


def probe_batches(parts: RunParts) -> list[np.ndarray]:
    """The same queries at every generation, as batches of all processes' size: int64 [B] each, about 64 in all."""
    count, size = len(parts.examples), min(parts.config.batch_size * parts.ranks.size, len(parts.examples))
    order = np.random.default_rng(parts.config.seed).permutation(count)
    return [
        order[start : start + size] for start in range(0, max(size, min(PROBE_QUERIES, count) // size * size), size)
    ]


def probe_losses(
    parts: RunParts, old: NegativeTable, new: NegativeTable, step: int, batches: list[np.ndarray], embed: Embed
) -> dict[str, float]:
    """{"loss_fresh", "loss_stale"}: the run's own loss of `batches` with negatives drawn from `new` and from `old`.

    Weights (those of `embed`, without dropout), positives and the random numbers of the draw are the same for both, so
    the difference is that of the candidates alone.
    """
    make = BatchMaker(parts.examples, parts.sampler)
    scale = loss_scale(parts.config.scale, parts.encoder)
    report = {}
    for name, table in (("loss_fresh", new), ("loss_stale", replace(old, generation=new.generation))):
        losses = [_loss(parts.config.loss, make(queries, table, step), queries, embed, scale) for queries in batches]
        report[name] = float(np.mean(losses))
    return report


def judged_candidates(parts: RunParts, table: NegativeTable) -> dict[str, float]:
    """Means of `Judgements.shares` over the candidates of `table`; empty without judgements or candidates."""
    judgements, stats = parts.examples.judgements, IntervalStats()
    if judgements is None:
        return {}
    # In blocks: the numbers of all candidates take several times the table's own memory.
    for start in range(0, len(table.candidates), 4096):
        rows = table.candidates[start : start + 4096]
        asked = start + np.arange(len(rows)) if table.queries is None else table.queries[start : start + 4096]
        for name, shares in judgements.shares(asked, rows, "candidate").items():
            stats.add(name, shares)
    return stats.report()


def _loss(kind: str, batch: TrainingBatch, queries: np.ndarray, embed: Embed, scale: float) -> float:
    with torch.no_grad():
        return float(batch_loss(kind, embed(queries, batch.encoded_rows), batch, scale))
