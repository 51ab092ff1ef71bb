"""Dev queries measured against one index after another, and the best encoder so far."""

from __future__ import annotations

import json
from pathlib import Path

from ance_fast.artifacts import write_json
from ance_fast.data.dataset import Dataset
from ance_fast.data.token_store import TokenStore
from ance_fast.evaluation import evaluate
from ance_fast.index import Index
from ance_fast.models.encoder import Encoder


class HeldOut:
    """Held-out queries, tokenised once, to be measured against index after index."""

    def __init__(self, dataset: Dataset, encoder: Encoder, max_query_length: int | None = None) -> None:
        tower = encoder.for_queries
        self.ids = list(dataset.queries)
        self.qrels = dataset.qrels
        self.queries = TokenStore.of_queries(
            dataset,
            self.ids,
            tower.tokenizer,
            max_length=max_query_length or tower.max_query_length,
            prompt=tower.query_prompt,
        )

    def search(self, encoder: Encoder, index: Index, k: int = 100) -> dict[str, dict[str, float]]:
        """The run of every query to depth `k`."""
        vectors = encoder.for_queries.encode_tokens(self.queries).cpu().numpy()
        return index.search_documents(vectors, k).to_run(self.ids)


class DevMeasure:
    """Measures `held_out` (None: nothing to measure) and keeps the best encoder by the first metric in `folder`/best.

    Attributes:
        best: (value, step) of that encoder, None before the first measurement.
    """

    def __init__(self, held_out: HeldOut | None, metrics: tuple[str, ...], folder: Path) -> None:
        self.held_out = held_out
        self.metrics = metrics
        self.best: tuple[float, int] | None = None
        self._folder = folder

    def __call__(self, encoder: Encoder, index: Index, step: int) -> dict[str, float]:
        """{"eval_" + metric: value} of the current weights; empty without dev queries."""
        if self.held_out is None:
            return {}
        evaluation = evaluate(self.held_out.search(encoder, index), self.held_out.qrels, metrics=self.metrics)
        value = evaluation[self.metrics[0]]
        if self.best is None or value > self.best[0]:
            self.best = (value, step)
            encoder.save(self._folder / "best")
            write_json(self._folder / "best.json", {"metric": self.metrics[0], "value": value, "step": step})
        return {f"eval_{name}": value for name, value in evaluation.items()}

    def resume(self) -> None:
        """Remember the best that the run has written. One later than the checkpoint stays: it will be reached again."""
        try:
            best = json.loads((self._folder / "best.json").read_text(encoding="utf-8"))
            self.best = (best["value"], best["step"])
        except FileNotFoundError:
            self.best = None
