"""Query indices to a packed batch: positives and negatives are resolved here, inside the training step.

Data loaders carry query indices only, so nothing that depends on the current negatives is ever prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ance_fast.data.packing import PackedBatch, Packer, Shard
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, NegativeTable, choose_positives


@dataclass(frozen=True)
class TrainingBatch:
    """B queries, the N distinct passages they need, and who needs which.

    positive int64 [B] and negatives int64 [B, H] (-1: none) index the N passages; `passage_rows` int64 [N] are their
    rows in the corpus; `known` (offsets, rows) lists all positives of each query.
    """

    packed: PackedBatch
    num_queries: int
    passage_rows: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray
    known: tuple[np.ndarray, np.ndarray]


class BatchMaker:
    """Builds batches from the token stores of `examples`."""

    def __init__(
        self, examples: Examples, negatives_per_query: int, seed: int, sampler: NegativeSampler | None = None
    ) -> None:
        self.examples = examples
        self.seed = seed
        self._draw = sampler or NegativeSampler(examples, seed=seed, count=negatives_per_query)
        shards: Sequence[Shard] = [*examples.passages.shards, *examples.queries.shards]
        self._packer = Packer(shards)
        self._first_query = len(examples.passages)

    def __call__(self, queries: np.ndarray, table: NegativeTable, step: int) -> TrainingBatch:
        """The batch of these query indices at optimizer step `step`; each distinct passage appears once."""
        positive = choose_positives(self.examples, queries, seed=self.seed, step=step)
        negatives = self._draw(table, queries, step)
        passages = np.unique(np.concatenate([positive, negatives[negatives >= 0]]))
        request = np.concatenate([queries + self._first_query, passages])
        # Longest first, so that equal lengths lie side by side for attention; `rows` leads back to the request.
        order = np.argsort(-self._packer.lengths(request), kind="stable")
        packed = self._packer.pack(request[order])
        slots = np.where(negatives >= 0, np.searchsorted(passages, negatives), -1)
        return TrainingBatch(
            packed=PackedBatch(
                packed.input_ids, packed.position_ids, packed.cu_seqlens, packed.max_seqlen, order, packed.host_offsets
            ),
            num_queries=len(queries),
            passage_rows=passages,
            positive=np.searchsorted(passages, positive),
            negatives=slots,
            known=self.examples.positives_of(queries),
        )
