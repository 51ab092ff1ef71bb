"""A whole generation by the current weights: encode, index, mine, compare with the one before, measure."""

from __future__ import annotations

from dataclasses import replace

from ance_fast.training.candidate_sources import refreshed_candidates
from ance_fast.training.generations import Generation
from ance_fast.training.refresh import hardness, take_snapshot
from ance_fast.training.refresher import RunParts
from ance_fast.training.staleness import OVERLAP_DEPTH, overlap


def new_generation(parts: RunParts, previous: Generation, step: int) -> Generation:
    """The generation after `previous`, made before optimizer step `step`; its metrics are what there is to log."""
    config, examples, old = parts.config, parts.examples, previous.table
    snapshot = take_snapshot(
        parts.encoder,
        examples,
        factory=config.index_factory,
        batch_tokens=config.batch_tokens,
        ranks=parts.ranks,
    )
    table = refreshed_candidates(
        snapshot, examples, parts.sampler, old, topk=config.topk, generation=previous.number + 1, step=step
    )
    report = {f"stale_{name}": value for name, value in hardness(snapshot, examples, old).items()}
    report |= hardness(snapshot, examples, table)
    report |= table.filtered_shares()
    if old.candidates.shape[1]:
        report[f"overlap@{OVERLAP_DEPTH}"] = float(overlap(old.candidates, table.candidates).mean())
    report |= parts.ranks.first(lambda: parts.dev(parts.encoder, snapshot.index, step))
    return Generation(parts.encoder.fingerprint(), replace(table, metrics=report), snapshot.index)
