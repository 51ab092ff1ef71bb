"""What all contestants of a data set share: texts, first weights, and the judge of what they learnt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ance_fast.data import Dataset, load_dataset
from ance_fast.evaluation import Evaluation, evaluate
from ance_fast.models import Encoder
from ance_fast.training.dev import HeldOut
from ance_fast.training.examples import Examples, prepare
from ance_fast.training.refresh import take_snapshot
from benchmarks.refresh.data import write_part
from benchmarks.refresh.recorder import Weights
from benchmarks.refresh.settings import Settings

METRICS = ("RR@10", "nDCG@10")


@dataclass(frozen=True)
class Bench:
    """Makes what it needs in `folder` from the BEIR folder `source`."""

    source: str
    settings: Settings
    folder: Path

    def dataset(self, split: str) -> Dataset:
        if not (self.folder / "data").exists():
            write_part(self.source, self.folder / "data", self.settings.passages)
        return load_dataset(str(self.folder / "data"), split=split)

    @cached_property
    def start(self) -> Path:
        """The first weights: a checkpoint in the layout of sentence-transformers, without dropout."""
        folder = self.folder / "start"
        if not folder.exists():
            encoder = self._load(self.settings.model, self.settings.layers)
            for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
                setattr(encoder.backbone.model.config, name, 0.0)
            encoder.save(folder)
        return folder

    def encoder(self) -> Encoder:
        return self._load(str(self.start), None)

    @cached_property
    def judge(self) -> Encoder:
        """Takes the weights of every contestant in turn."""
        return self.encoder()

    @cached_property
    def examples(self) -> Examples:
        return prepare(self.dataset("train"), self.judge, self.folder / "passages")

    @cached_property
    def held_out(self) -> HeldOut:
        return HeldOut(self.dataset("dev"), self.judge)

    def measure(self, weights: Weights | None) -> Evaluation:
        """Dev queries against all passages, both encoded by these weights of the transformer (None: by the first)."""
        judge = self.judge if weights is not None else self.encoder()
        if weights is not None:
            # sentence-transformers also keeps the pooler, which nothing here uses.
            missing = judge.backbone.model.load_state_dict(weights, strict=False).missing_keys
            if missing:
                raise RuntimeError(f"weights without {', '.join(missing)}")
        index = take_snapshot(judge, self.examples, factory="Flat", queries=False).index
        return evaluate(self.held_out.search(judge, index), self.held_out.qrels, METRICS)

    def _load(self, model: str, layers: int | None) -> Encoder:
        length = self.settings.max_length
        return Encoder.load(
            model,
            device=self.settings.device,
            dtype="float32",
            # The peer's loss compares by cosine.
            normalize=True,
            num_layers=layers,
            max_query_length=length,
            max_document_length=length,
        )

    def describe(self) -> dict[str, Any]:
        """Counts, for the report."""
        lengths = torch.as_tensor(self.examples.passages.lengths, dtype=torch.float32)
        return {
            "passages": len(self.examples.passages),
            "train_queries": len(self.examples),
            "dev_queries": len(self.held_out.ids),
            "tokens_a_passage": float(lengths.mean()),
        }


def read_json(path: Path) -> dict[str, Any]:
    """What a file of results holds; empty if there is none."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
