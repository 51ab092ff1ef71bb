"""Dev queries measured against one index after another, and the best encoder so far."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ance_fast.artifacts import write_json
from ance_fast.data.dataset import Dataset
from ance_fast.data.token_store import TokenStore
from ance_fast.evaluation import evaluate
from ance_fast.index import Index
from ance_fast.models.encoder import Encoder
from ance_fast.training.dev_candidates import Candidates


class HeldOut:
    """Held-out queries, tokenised once, to be measured against index after index.

    passages: the corpus they are asked of, where it is not that of the run. candidates: lists of passages that are
    ranked for them too, or, with `full=False`, alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoder: Encoder,
        max_query_length: int | None = None,
        *,
        passages: TokenStore | None = None,
        candidates: Candidates | None = None,
        full: bool = True,
    ) -> None:
        tower = encoder.for_queries
        self.ids = list(dataset.queries)
        self.qrels = dataset.qrels
        self.passages = passages
        self.candidates = candidates
        self.full = full
        self.queries = TokenStore.of_queries(
            dataset,
            self.ids,
            tower.tokenizer,
            max_length=max_query_length or tower.max_query_length,
            prompt=tower.query_prompt,
        )

    def search(self, encoder: Encoder, index: Index, k: int = 100) -> dict[str, dict[str, float]]:
        """The run of every query to depth `k`."""
        return index.search_documents(self.encoded(encoder), k).to_run(self.ids)

    def encoded(self, encoder: Encoder) -> np.ndarray:
        """The queries as `encoder` sees them now, float32 [n, dim]."""
        vectors: np.ndarray = encoder.for_queries.encode_tokens(self.queries).cpu().numpy()
        return vectors


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

    @property
    def needs_index(self) -> bool:
        """Whether queries are ranked against a whole corpus."""
        return self.held_out is not None and self.held_out.full

    @property
    def passages(self) -> TokenStore | None:
        """The corpus that the queries are asked of; None for that of the run."""
        return None if self.held_out is None else self.held_out.passages

    def __call__(self, encoder: Encoder, index: Index | None, step: int) -> dict[str, float]:
        """{"eval_" + metric: value} of the current weights, "eval_rerank_" + metric of the candidates' order; empty
        without dev queries.

        index: of the corpus that they are asked of, encoded by these weights; None if only candidates are ranked.
        """
        held_out = self.held_out
        if held_out is None:
            return {}
        runs = {}
        if held_out.full and index is not None:
            runs["eval_"] = held_out.search(encoder, index)
        if held_out.candidates is not None:
            queries = held_out.encoded(encoder)
            runs["eval_rerank_"] = held_out.candidates.ranked(encoder, queries, index)
        report: dict[str, float] = {}
        for prefix, run in runs.items():
            evaluation = evaluate(run, held_out.qrels, metrics=self.metrics)
            report |= {f"{prefix}{name}": value for name, value in evaluation.items()}
        if not report:
            return {}
        first = f"{next(iter(runs))}{self.metrics[0]}"
        if self.best is None or report[first] > self.best[0]:
            self.best = (report[first], step)
            encoder.save(self._folder / "best")
            metric = first.removeprefix("eval_")
            write_json(self._folder / "best.json", {"metric": metric, "value": report[first], "step": step})
        return report

    def resume(self) -> None:
        """Remember the best that the run has written. One later than the checkpoint stays: it will be reached again."""
        try:
            best = json.loads((self._folder / "best.json").read_text(encoding="utf-8"))
            self.best = (best["value"], best["step"])
        except FileNotFoundError:
            self.best = None
