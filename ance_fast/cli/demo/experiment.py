"""The demo's rows: BM25, the untrained encoder, and four ways to choose negatives, otherwise trained alike.

All rows train alike, at the learning rate that was best on dev queries for static BM25 negatives (docs/results.md).
Every finished row is kept as a small file, so an interrupted demo goes on with the row it was in.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast.artifacts import write_json
from ance_fast.cli.demo.data import model_folder, write_data
from ance_fast.data import Dataset, Run, TokenStore, load_dataset, read_run, write_run
from ance_fast.encoding import StageTimes, encode_spans
from ance_fast.encoding.budget import default_budget
from ance_fast.evaluation import evaluate, paired_significance
from ance_fast.index import Bm25
from ance_fast.models import Encoder
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.dev import HeldOut
from ance_fast.training.examples import prepare
from ance_fast.training.refresh import take_snapshot

logger = logging.getLogger(__name__)

METRICS = ("nDCG@10", "RR@10", "R@100")
LAYERS = 2
QUERY_TOKENS, PASSAGE_TOKENS = 32, 64
# The same for every trained row. The loss is the paper's, which sees a query's own negatives only: what differs between
# the rows is then the choice of negatives and nothing else.
SHARED: dict[str, Any] = {"batch_size": 32, "learning_rate": 4e-4, "dropout": 0.0, "loss": "pairwise"}


@dataclass(frozen=True)
class Row:
    """A trained row: its folder and label, and what sets it apart from the others."""

    name: str
    label: str
    settings: dict[str, Any]


def trained_rows(steps: int) -> list[Row]:
    """The four rows. ANCE warms up on BM25 negatives for two fifths of the steps, then refreshes every fifth."""
    warm_up, interval = max(1, 2 * steps // 5), max(1, steps // 5)
    return [
        Row("random", "random negatives", {"start": "random", "refresh": "none"}),
        Row("bm25", "static BM25 negatives", {"start": "bm25", "refresh": "none"}),
        Row(
            "once",
            "own-index negatives, mined once",
            {"start": "bm25", "first_refresh": warm_up, "refresh_every": interval, "max_refreshes": 1},
        ),
        Row("ance", "ANCE, refreshed", {"start": "bm25", "first_refresh": warm_up, "refresh_every": interval}),
    ]


def run_experiment(folder: Path, *, steps: int, passages: int | None, seed: int, device: str) -> dict[str, Any]:
    """Run or finish every row in `folder`; returns the results as the report needs them."""
    data = folder / "data"
    if not (data / "manifest.json").exists():
        write_data(data, passages)
    start = folder / "start"
    if not start.exists():
        encoder = Encoder.load(
            str(model_folder()),
            device="cpu",
            num_layers=LAYERS,
            max_query_length=QUERY_TOKENS,
            max_document_length=PASSAGE_TOKENS,
        )
        encoder.save(start)
    rows = [_row(folder, "bm25-search", "BM25", functools.partial(_bm25, data))]
    rows.append(
        _row(folder, "start", "encoder before training", functools.partial(_untrained, folder, data, start, device))
    )
    for kind in trained_rows(steps):
        logger.info("--- %s", kind.label)
        train = functools.partial(_train, folder, data, start, kind, steps, seed, device)
        rows.append(_row(folder, kind.name, kind.label, train))
    qrels = load_dataset(str(data), split="test").qrels
    evaluations = {
        row["key"]: evaluate(read_run(folder / "runs" / f"{row['key']}.trec"), qrels, METRICS) for row in rows
    }
    for row in rows:
        own = evaluations[row["key"]]
        row |= dict(own)
        row["p_value"] = (
            None if row["key"] == "ance" else paired_significance(evaluations["ance"], own, METRICS[0]).p_value
        )
    ance = read_run(folder / "runs" / "ance.trec")
    log = (folder / "ance" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "rows": rows,
        "queries": evaluations["ance"].num_queries,
        "steps": steps,
        "seed": seed,
        "encoder": _throughput(folder, device),
        "refreshes": [entry for entry in map(json.loads, log) if "generation" in entry],
        "index": str(folder / "ance"),
        "example": _answered(ance, load_dataset(str(data), split="test")),
    }


def _answered(run: Run, test: Dataset) -> str:
    """A held-out query of several words whose article ANCE ranks first; the first query if there is none."""
    for query, text in test.queries.items():
        best = max(run.get(query, {}).items(), key=lambda hit: hit[1], default=(None, 0.0))[0]
        if best is not None and test.qrels[query].get(best, 0) > 0 and 4 <= len(text.split()) <= 8:
            return text
    return next(iter(test.queries.values()))


def _row(folder: Path, key: str, label: str, make: Callable[[], Run]) -> dict[str, Any]:
    done = folder / "rows" / f"{key}.json"
    if done.exists():
        row: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return row
    begun = folder / "rows" / f"{key}.begun"
    resumed = begun.exists()
    begun.parent.mkdir(exist_ok=True)
    begun.touch()
    started = time.monotonic()
    run = make()
    (folder / "runs").mkdir(exist_ok=True)
    write_run(folder / "runs" / f"{key}.trec", run, key)
    # What an interrupted attempt had taken is not known, so no time is given for a row that was resumed.
    row = {"key": key, "name": label, "seconds": None if resumed else round(time.monotonic() - started, 1)}
    write_json(done, row)
    begun.unlink()
    return row


def _bm25(data: Path) -> Run:
    dataset = load_dataset(str(data), split="test")
    documents = list(dataset.corpus)
    bm25 = Bm25.build((document.full_text for document in documents), [document.id for document in documents])
    return bm25.search(list(dataset.queries.values()), 100).to_run(list(dataset.queries))


def _untrained(folder: Path, data: Path, start: Path, device: str) -> Run:
    encoder = Encoder.load(str(start), device=device, dtype="float32")
    examples = prepare(load_dataset(str(data), split="train"), encoder, folder / "passages", show_progress=True)
    snapshot = take_snapshot(encoder, examples, factory="Flat", queries=False)
    return HeldOut(load_dataset(str(data), split="test"), encoder).search(encoder, snapshot.index)


def _train(folder: Path, data: Path, start: Path, row: Row, steps: int, seed: int, device: str) -> Run:
    config = AnceConfig(
        output_dir=str(folder / row.name),
        max_steps=steps,
        seed=seed,
        save_every=max(10, steps // 5),
        save_total_limit=1,
        **SHARED,
        **row.settings,
    )
    encoder = Encoder.load(str(start), device=device, dtype="float32")
    trainer = AnceTrainer(
        encoder, load_dataset(str(data), split="train"), config, dev=load_dataset(str(data), split="dev")
    )
    trainer.train(resume=any((folder / row.name / "checkpoints").glob("step-*")))
    run, _ = trainer.evaluate_on(load_dataset(str(data), split="test"))
    return run


def _throughput(folder: Path, device: str, sample: int = 2000, repeats: int = 3) -> dict[str, float]:
    """Passages and tokens per second of the trained encoder on stored tokens; the median of `repeats`."""
    encoder = Encoder.load(str(folder / "ance" / "final"), device=device)
    store = TokenStore.open(folder / "ance" / "passages", verify=False)
    matrix = torch.empty(len(store), encoder.dim, device=encoder.device)
    count = min(sample, len(store))
    seconds = []
    for rows in (64, *[count] * repeats):  # the first warms up
        times = StageTimes()
        budget = default_budget(encoder.device)
        encode_spans(encoder, store, [(0, min(rows, count))], resident=matrix, batch_tokens=budget, times=times)
        seconds.append(times.wall)
    median = float(np.median(seconds[1:]))
    return {"passages_per_s": count / median, "tokens_per_s": float(store.lengths[:count].sum()) / median}
