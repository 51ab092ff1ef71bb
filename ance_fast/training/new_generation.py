"""A whole generation by the current weights: encode, index, mine, compare with the one before, measure."""

from __future__ import annotations

import time
from dataclasses import replace

from ance_fast.training.candidate_sources import generation_candidates
from ance_fast.training.generations import Generation
from ance_fast.training.measures import compared
from ance_fast.training.refresh import take_snapshot
from ance_fast.training.refresher import RunParts


def new_generation(parts: RunParts, previous: Generation, step: int) -> Generation:
    """The generation after `previous`, made before optimizer step `step`; its metrics are what there is to log.

    "seconds_encode" takes in the index, "seconds_measure" the dev queries.
    """
    times = [time.monotonic()]
    config, examples, old = parts.config, parts.examples, previous.table
    snapshot = take_snapshot(
        parts.encoder,
        examples,
        factory=config.index_factory,
        batch_tokens=config.batch_tokens,
        ranks=parts.ranks,
    )
    times.append(time.monotonic())
    table = generation_candidates(
        snapshot, config, examples, parts.sampler, old, generation=previous.number + 1, step=step
    )
    times.append(time.monotonic())
    report = parts.ranks.first(
        lambda: compared(parts, snapshot, old, table, step) | parts.dev(parts.encoder, snapshot.index, step)
    )
    times.append(time.monotonic())
    seconds = zip(("encode", "mine", "measure"), times[:-1], times[1:], strict=True)
    report |= {f"seconds_{part}": end - begin for part, begin, end in seconds}
    return Generation(parts.encoder.fingerprint(), replace(table, metrics=report), snapshot.index)
