"""Refreshed negatives for sentence-transformers' own trainer.

    pairs = datasets.Dataset.from_dict({"anchor": [...], "positive": [...]})
    refresh = RefreshNegatives(pairs, model, every=200, num_negatives=2, range_max=50, sampling_strategy="random")
    trainer = SentenceTransformerTrainer(model, args, train_dataset=refresh.dataset, loss=loss, callbacks=[refresh])
    trainer.train()

Its trainer builds the data loader once, so the data set itself must change: `refresh.dataset` holds the pairs, and
looks the negatives of a row up when the row is read. Nothing is written to disk. The loader (accelerate's) reads one
batch ahead, so the first batch after a refresh still has the negatives from before it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.mining.limits import Limits
from ance_fast.mining.pair_mining import Encoding, mine_pairs
from ance_fast.mining.pairs import Pairs, read_pairs

logger = logging.getLogger(__name__)


class RefreshNegatives(TrainerCallback):
    """Mines with the live model when it is made, after every `every` optimizer steps, and when a run is resumed.

    Args:
        pairs: a `datasets.Dataset` whose first two columns are anchors and positives; equal anchors are one query.
        model: the `SentenceTransformer` that will be trained.
        every: optimizer steps between refreshes.
        num_negatives: of each row, in the columns `negative_1`, `negative_2`, ....
        corpus: texts to mine from, besides the positives.
        sampling_strategy, range_min, range_max, max_score, min_score, absolute_margin, relative_margin, seed: as for
            `mine_hard_negatives`. Every refresh draws anew.
        encoding: prompts, metric ("cosine" unless the loss compares by inner product) and batch size.

    Where fewer passages pass the limits, the rest are drawn from the whole corpus, never a positive of the query: the
    data set keeps its length, on which the run's schedule rests. Rows of equal anchor and positive count once.

    Attributes:
        dataset: what to give to the trainer.
        generation: refreshes so far, the first one included; `step`: the optimizer step of the last one.

    Raises `ConfigError`: settings that cannot be met, a corpus in which a query has too few passages but its positives,
    and, when training begins, `dataloader_num_workers`, whose processes would keep the first negatives for ever.
    """

    def __init__(
        self,
        pairs: Any,
        model: Any,
        *,
        every: int,
        num_negatives: int = 1,
        corpus: Sequence[str] | None = None,
        sampling_strategy: str = "top",
        range_min: int = 0,
        range_max: int | None = None,
        max_score: float | None = None,
        min_score: float | None = None,
        absolute_margin: float | None = None,
        relative_margin: float | None = None,
        seed: int = 42,
        encoding: Encoding | None = None,
    ) -> None:
        if every < 1:
            raise ConfigError(f"every={every}: refresh after at least 1 step")
        if len(pairs.column_names) < 2:
            raise ConfigError(f"the dataset has the columns {pairs.column_names}; it needs anchors and positives")
        self._anchor, self._positive = pairs.column_names[:2]
        self._pairs = read_pairs(pairs[self._anchor], pairs[self._positive], corpus)
        self._fewest = len(self._pairs.corpus) - int(np.diff(self._pairs.offsets).max())
        if self._fewest < num_negatives:
            raise ConfigError(
                f"a query has {self._fewest} passages that are not its positives, of {num_negatives} asked"
            )
        window = range_min + 10 * num_negatives if range_max is None else range_max
        self._limits = Limits(window, range_min, max_score, min_score, absolute_margin, relative_margin)
        self._limits.refuse_too_few(num_negatives)
        self._limits.refuse_unknown_sampling(sampling_strategy)
        self._every, self._count, self._seed = every, num_negatives, seed
        self._sampling = sampling_strategy
        self._encoding = encoding or Encoding()
        self._rows = np.zeros((0, num_negatives), dtype=np.int64)
        self._queries = {text: row for row, text in enumerate(self._pairs.queries)}
        self.generation = 0
        self.step = 0
        self.dataset = self._live_dataset()
        self.refresh(model, 0)

    def refresh(self, model: Any, step: int) -> None:
        """Mine with `model` as it is now; rows that are read from now on have these negatives."""
        started = time.monotonic()
        seed = (self._seed, self.generation)
        mined = mine_pairs(
            self._pairs, model, self._limits, self._count, self._encoding, sampling=self._sampling, seed=seed
        )
        missing = int((mined.rows < 0).sum())
        self._rows = _filled(mined.rows, self._pairs, seed)
        self.generation, self.step = self.generation + 1, step
        logger.info(
            "step %d: negatives of generation %d mined in %.1f s, %d of them drawn at random",
            step, self.generation, time.monotonic() - started, missing,
        )  # fmt: skip

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.dataloader_num_workers:
            raise ConfigError(
                f"dataloader_num_workers={args.dataloader_num_workers}: worker processes hold copies of the data set, "
                "which no refresh reaches; set it to 0"
            )
        if state.global_step:
            self.refresh(kwargs["model"], state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 and state.global_step < state.max_steps:
            self.refresh(kwargs["model"], state.global_step)

    def _live_dataset(self) -> Any:
        try:
            from datasets import Dataset, Features, Value
        except ImportError as error:
            raise MissingDependencyError(
                "RefreshNegatives needs datasets, as sentence-transformers' trainer does: "
                "pip install 'ance_fast[datasets]'"
            ) from error
        pairs = self._pairs
        columns = {
            self._anchor: [pairs.queries[query] for query in pairs.owners.tolist()],
            self._positive: [pairs.corpus[row] for row in pairs.rows.tolist()],
        }
        # The columns of negatives are there for the trainer to see; what they hold is made when a row is read.
        columns |= {name: [""] * len(pairs.rows) for name in self._negative_names()}
        features = Features({name: Value("string") for name in columns})
        return Dataset.from_dict(columns, features=features).with_transform(self._with_negatives)

    def _with_negatives(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        names = [name for name in self._negative_names() if name in batch]
        if not names or self._anchor not in batch:
            return batch
        found = self._rows[[self._queries[anchor] for anchor in batch[self._anchor]]]
        texts = {
            name: [self._pairs.corpus[row] for row in found[:, slot].tolist()]
            for slot, name in enumerate(self._negative_names())
            if name in names
        }
        return {**batch, **texts}

    def _negative_names(self) -> list[str]:
        return [f"negative_{slot}" for slot in range(1, self._count + 1)]


def _filled(rows: np.ndarray, pairs: Pairs, seed: tuple[int, int]) -> np.ndarray:
    """`rows` [n, count] with each -1 replaced by a passage drawn from the corpus: no positive, none twice."""
    rows = rows.copy()
    for query in np.flatnonzero((rows < 0).any(axis=1)).tolist():
        taken = np.concatenate([rows[query], pairs.rows[pairs.offsets[query] : pairs.offsets[query + 1]]])
        free = np.setdiff1d(np.arange(len(pairs.corpus)), taken)
        missing = rows[query] < 0
        rows[query, missing] = np.random.default_rng([*seed, query]).choice(free, int(missing.sum()), replace=False)
    return rows
