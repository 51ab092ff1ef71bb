"""Dev queries measured against one index after another, and the best encoder so far."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ance_fast.artifacts import write_json
from ance_fast.data.dataset import Dataset
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ConfigError
from ance_fast.evaluation import Evaluation, evaluate, evaluate_answers
from ance_fast.index import Index
from ance_fast.models.encoder import Encoder
from ance_fast.training.dev_candidates import Candidates

_TOP = re.compile(r"top-[1-9]\d*")


def refuse_metrics(metrics: Sequence[str], dev: Dataset | None) -> None:
    """Raise `ConfigError` for a metric that is not known, or that needs answers which the dev data does not bring."""
    by_answers, by_judgements = _apart(metrics)
    if by_judgements or not by_answers:
        evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, metrics=by_judgements)
    if by_answers and dev is not None:
        _refuse_without(by_answers, dev.answers)


def _apart(metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those by answers, "top-20", and those by judgements."""
    by_answers = [name for name in metrics if _TOP.fullmatch(name)]
    return by_answers, [name for name in metrics if name not in by_answers]


def _refuse_without(metrics: Sequence[str], answers: Mapping[str, list[str]] | None) -> None:
    if not answers:
        raise ConfigError(f"metric {metrics[0]!r}: the dev data brings no answers; `dpr:` and `kilt:` data do")


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
        self.answers = dataset.answers
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

    def evaluate(self, run: dict[str, dict[str, float]], metrics: Sequence[str], passages: TokenStore) -> Evaluation:
        """Measure a run of these queries: "top-20" and its like by the answers that `passages` hold, all others by
        judgements.

        Raises `ConfigError` if there are none of those, and what `evaluate` and `evaluate_answers` raise.
        """
        by_answers, by_judgements = _apart(metrics)
        parts = []
        if by_answers:
            _refuse_without(by_answers, self.answers)
            parts.append(evaluate_answers(run, self.answers or {}, passages, by_answers))
        if by_judgements:
            parts.append(evaluate(run, self.qrels, metrics=by_judgements))
        values = {name: part.per_query[name] for part in parts for name in part}
        means = {name: part[name] for part in parts for name in part}
        missing = tuple(dict.fromkeys(query for part in parts for query in part.missing))
        return Evaluation({name: means[name] for name in metrics}, {name: values[name] for name in metrics}, missing)

    def encoded(self, encoder: Encoder) -> np.ndarray:
        """The queries as `encoder` sees them now, float32 [n, dim]."""
        vectors: np.ndarray = encoder.for_queries.encode_tokens(self.queries).cpu().numpy()
        return vectors


class DevMeasure:
    """Measures `held_out` (None: nothing to measure) and keeps the best encoder by the first metric in `folder`/best.

    corpus: the run's passages, which answers are looked for in where `held_out` has none of its own.

    Attributes:
        best: (value, step) of that encoder, None before the first measurement.
    """

    def __init__(self, held_out: HeldOut | None, metrics: tuple[str, ...], folder: Path, corpus: TokenStore) -> None:
        self.held_out = held_out
        self.metrics = metrics
        self.best: tuple[float, int] | None = None
        self._folder = folder
        self._corpus = corpus

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
        texts = self._corpus if held_out.passages is None else held_out.passages
        report: dict[str, float] = {}
        for prefix, run in runs.items():
            evaluation = held_out.evaluate(run, self.metrics, texts)
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
