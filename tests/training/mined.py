"""What a whole refresh mines, without a sampler: an oracle of the tests."""

from __future__ import annotations

from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeTable, mined_table
from ance_fast.training.refresh import Snapshot


def mine(snapshot: Snapshot, examples: Examples, *, topk: int, generation: int, step: int) -> NegativeTable:
    """The top `topk` passages of every training query that are not its positives."""
    positives = examples.positive_offsets, examples.positive_rows
    found = snapshot.index.search(snapshot.queries, min(topk, len(examples.passages)), exclude_positions=positives)
    return mined_table(examples, found.positions, found.scores, "index", generation, step)
