"""The batch of a step when several processes train: each holds a part of it, the loss is that of the whole.

Every rank's passages are candidates for every rank's queries (`contrastive_loss` with a process group). A passage that
several ranks need is encoded by each of them and would be a candidate more than once; here all but one of its copies
are masked, so the loss is that of one process with the same queries, where each distinct passage stands once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ance_fast.training.batch import TrainingBatch
from ance_fast.training.ranks import Ranks


@dataclass(frozen=True)
class Part:
    """What others have to know of a rank's part of a batch: its queries int64 [B], passage rows int64 [N] of its texts,
    its negatives int64 [B, H] as rows (-1: none), and the ages of those that have one."""

    queries: np.ndarray
    passages: np.ndarray
    negatives: np.ndarray
    ages: np.ndarray


def share_batch(
    make: Callable[[], tuple[np.ndarray, TrainingBatch, np.ndarray]], ranks: Ranks, *, corpus: int
) -> tuple[TrainingBatch, Part]:
    """This rank's batch for the loss, and the parts of all ranks together: what one process would have.

    `make` returns the queries of the batch, the batch, and the ages of its negatives; corpus: how many passages there
    are.
    """
    made: list[TrainingBatch] = []

    def part() -> Part:
        queries, batch, ages = make()
        made.append(batch)
        return Part(queries, batch.passage_rows, batch.negative_rows, ages)

    parts = ranks.each(part)
    if ranks.size == 1:
        return made[0], parts[0]
    whole = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("queries", "passages", "negatives", "ages")
    )
    return without_copies(made[0], [part.passages for part in parts[: ranks.rank]], corpus=corpus), Part(*whole)


def without_copies(batch: TrainingBatch, before: list[np.ndarray], *, corpus: int) -> TrainingBatch:
    """`batch` with the passages that are among `before`, those of the ranks before, known to be nobody's candidates.

    They get the row number `corpus`, which no passage has, and it becomes a known positive of every query. A query
    whose own positive is such a copy keeps it as its target; the other copy is masked as a known positive under its own
    number.
    """
    copies = np.isin(batch.passage_rows, np.concatenate([*before, [-1]]))
    offsets, rows = batch.known
    every = np.arange(len(offsets))
    known = np.insert(rows, offsets[1:], corpus)
    return replace(batch, passage_rows=np.where(copies, corpus, batch.passage_rows), known=(offsets + every, known))
