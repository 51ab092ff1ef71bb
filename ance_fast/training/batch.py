"""Query indices to packed chunks: positives and negatives are resolved here, inside the training step.

Data loaders carry query indices only, so nothing that depends on the current negatives is ever prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ance_fast.data.packing import PackedBatch, Packer, Shard
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, NegativeTable, choose_positives


@dataclass(frozen=True)
class TrainingBatch:
    """B queries, the N distinct passages they need, and who needs which.

    The distinct texts lie in `chunks`, longest first; for two towers passages first, and a chunk is for one of them.
    `places` int64 [B + N]: which of them each query, then each passage, is.

    Where passages are documents in chunks, passage n has the texts B + row_starts[n] .. B + row_starts[n + 1] - 1 of
    `places` int64 [B + chunks]; `encoded_rows` are the rows of the token store they come from and `most_chunks` is a
    bound on those of one document. Else `row_starts` is None, and they are the passages.

    positive int64 [B] and negatives int64 [B, H] (-1: none) index the N passages; `passage_rows` int64 [N] are their
    rows in the corpus; `known` (offsets, rows) lists all positives of each query.
    """

    chunks: list[PackedBatch]
    places: np.ndarray
    num_queries: int
    passage_rows: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray
    known: tuple[np.ndarray, np.ndarray]
    row_starts: np.ndarray | None = None
    chunk_rows: np.ndarray | None = None
    most_chunks: int = 1

    @property
    def encoded_rows(self) -> np.ndarray:
        """The rows of the token store that passages are encoded from, int64."""
        return self.passage_rows if self.chunk_rows is None else self.chunk_rows

    @property
    def negative_rows(self) -> np.ndarray:
        """The negatives as rows in the corpus, int64 [B, H], -1: none."""
        return np.where(self.negatives >= 0, self.passage_rows[self.negatives], -1)


class BatchMaker:
    """Builds batches from the token stores of `examples`.

    encode_tokens: tokens of a chunk at most (a longer text is a chunk of its own); None: a batch is one chunk.
    two_towers: queries and passages go into chunks of their own, those of queries marked so.
    """

    def __init__(
        self,
        examples: Examples,
        sampler: NegativeSampler,
        *,
        encode_tokens: int | None = None,
        two_towers: bool = False,
    ) -> None:
        self.examples = examples
        self._two_towers = two_towers
        self._budget = encode_tokens or int(np.iinfo(np.int64).max)
        self._draw = sampler
        shards: Sequence[Shard] = [*examples.passages.shards, *examples.queries.shards]
        self._packer = Packer(shards)
        self._first_query = len(examples.passages)

    def __call__(self, queries: np.ndarray, table: NegativeTable, step: int) -> TrainingBatch:
        """The batch of these query indices at optimizer step `step`; each distinct text appears once."""
        positive = choose_positives(self.examples, queries, seed=self._draw.seed, step=step)
        return self.of(queries, positive, self._draw(table, queries, step))

    def of(self, queries: np.ndarray, positive: np.ndarray, negatives: np.ndarray) -> TrainingBatch:
        """The batch of query indices int64 [B], which may repeat, with positives [B] and negatives [B, H] (int64 rows,
        -1: none)."""
        passages = np.unique(np.concatenate([positive, negatives[negatives >= 0]]))
        starts, rows = self.examples.rows_of(passages)
        texts, which = np.unique(np.concatenate([queries + self._first_query, rows]), return_inverse=True)
        chunks = self._chunks(texts)
        place = np.empty(len(texts), dtype=np.int64)
        place[np.concatenate([chunk.rows for chunk in chunks])] = np.arange(len(texts))
        return TrainingBatch(
            chunks=chunks,
            places=place[which],
            num_queries=len(queries),
            passage_rows=passages,
            positive=np.searchsorted(passages, positive),
            negatives=np.where(negatives >= 0, np.searchsorted(passages, negatives), -1),
            known=self.examples.positives_of(queries),
            row_starts=starts,
            chunk_rows=None if starts is None else rows,
            most_chunks=1 if self.examples.documents is None else self.examples.documents.most,
        )

    def _chunks(self, texts: np.ndarray) -> list[PackedBatch]:
        """The packed `texts`, ascending rows of passages and then of queries; `rows` of a chunk number them."""
        first_query = int(np.searchsorted(texts, self._first_query))
        parts = [(0, len(texts))] if not self._two_towers else [(0, first_query), (first_query, len(texts))]
        # Sorted by length, so that equal lengths lie side by side for attention and chunks cost nearly the same.
        return [
            replace(chunk, rows=chunk.rows + start, for_queries=self._two_towers and start == first_query)
            for start, stop in parts
            for chunk in self._packer.batches(
                texts[start:stop], token_budget=self._budget, window=stop - start, max_sequences=max(1, stop - start)
            )
        ]
