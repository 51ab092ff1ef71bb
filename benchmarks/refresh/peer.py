"""sentence-transformers' way: mine hard negatives, make a new trainer, train until the next refresh, and again.

What it starts from is lent to it: the BM25 negatives come from the same call as ours, one drawn a query. Mining is its
own `mine_hard_negatives` over the whole corpus, without its cache, which would give the negatives of the first weights
for ever. Of three batch sizes it encodes with the one that was fastest just before.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import write_json
from ance_fast.training.candidate_sources import run_sampler
from ance_fast.training.negatives import NegativeTable
from ance_fast.training.start import start_table
from benchmarks.refresh.bench import Bench, read_json
from benchmarks.refresh.recorder import Recorder, Trained
from benchmarks.refresh.settings import PEER, SCALE, Plan, Settings, ance_config

BATCH_SIZES = (8, 32, 128)


def train_by_loop(bench: Bench, seed: int) -> Trained:
    """Run the loop. The clock begins with the model and the texts loaded."""
    from datasets import Dataset

    settings = bench.settings
    model = load(bench)
    passages = [document.full_text for document in bench.dataset("train").corpus]
    refuse_other_start(bench, model, passages)
    size = fastest_batch_size(bench, model, passages[:256])
    pairs = bench.examples.pairs
    columns = {
        "anchor": [bench.examples.texts[query] for query in pairs[:, 0]],
        "positive": [passages[row] for row in pairs[:, 1]],
    }
    recorder = Recorder(model[0].auto_model, settings.measured_steps)
    recorder.start()
    parts, seconds_mining = [0, *settings.refreshes, settings.steps], 0.0
    for generation, (begin, end) in enumerate(pairwise(parts)):
        started = time.perf_counter()
        if generation == 0:
            drawn = drawn_from(first_table(bench, seed), pairs[:, 0], seed)
            dataset = Dataset.from_dict({**columns, "negative": [passages[row] for row in drawn]})
        else:
            dataset = mined(Dataset.from_dict(columns), model, passages, settings, size)
            seconds_mining += time.perf_counter() - started
        train_part(model, dataset, settings, recorder, bench.folder / PEER, begin, end, seed=seed + 1000 * generation)
    recorder.trained.extra = {
        "seconds_refresh": seconds_mining,
        "encode_batch_size": size,
        "refreshes": [{"step": step} for step in settings.refreshes],
    }
    return recorder.trained


def load(bench: Bench) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bench.start), device=bench.settings.device)
    model.max_seq_length = bench.settings.max_length
    return model


def mined(pairs: Any, model: Any, passages: list[str], settings: Settings, batch_size: int) -> Any:
    """One negative a pair, drawn from the `topk` best passages that are not its positives."""
    from sentence_transformers.util import mine_hard_negatives

    return mine_hard_negatives(
        pairs,
        model,
        corpus=passages,
        range_min=0,
        range_max=settings.topk,
        num_negatives=1,
        sampling_strategy="random",
        output_format="n-tuple",
        batch_size=batch_size,
        use_faiss=False,
        verbose=False,
    )


def train_part(
    model: Any, dataset: Any, settings: Settings, recorder: Recorder, folder: Path, begin: int, end: int, *, seed: int
) -> None:
    """Steps `begin` to `end` by a trainer of their own, whose Adam state begins anew."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.training_args import BatchSamplers

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch,
        max_steps=end - begin,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps if begin == 0 else 0,
        weight_decay=0.01,
        max_grad_norm=1.0,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        dataloader_drop_last=True,
        disable_tqdm=True,
        use_cpu=settings.device == "cpu",
        seed=seed,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        loss=MultipleNegativesRankingLoss(model, scale=SCALE),
        callbacks=[recorder],
    )
    trainer.train()


def first_table(bench: Bench, seed: int) -> NegativeTable:
    config = ance_config(bench.settings, Plan("none", "contrastive", seed), bench.folder / PEER)
    sampler = run_sampler(bench.examples, config)
    return start_table(config, bench.judge, bench.examples, sampler)


def drawn_from(table: NegativeTable, queries: np.ndarray, seed: int) -> np.ndarray:
    """A candidate of each query, uniformly: rows int64 [len(queries)]."""
    counts = (table.candidates >= 0).sum(axis=1)[queries]
    if not counts.all():
        raise RuntimeError("a query has no BM25 candidate")
    places = (np.random.default_rng(seed).random(len(queries)) * counts).astype(np.int64)
    return table.candidates[queries, places].astype(np.int64)


def fastest_batch_size(bench: Bench, model: Any, passages: list[str]) -> int:
    """Of three; looked for once in the folder of a bench."""
    path = bench.folder / "batch_size.json"
    found = read_json(path)
    if not found:
        for size in (*BATCH_SIZES, *BATCH_SIZES):  # the first time warms up
            started = time.perf_counter()
            model.encode_document(passages, batch_size=size, convert_to_numpy=True, show_progress_bar=False)
            found[str(size)] = time.perf_counter() - started
        write_json(path, found)
    return int(min(found, key=found.__getitem__))


def refuse_other_start(bench: Bench, model: Any, passages: list[str]) -> None:
    """Both sides must begin from the same vectors of the same texts."""
    theirs = model.encode_document(passages[:32], convert_to_numpy=True, show_progress_bar=False)
    ours = bench.encoder().encode_tokens(bench.examples.passages, np.arange(len(theirs))).cpu().numpy()
    difference = float(np.abs(theirs - ours).max())
    if not difference < 1e-4:
        raise RuntimeError(f"{PEER} begins with other vectors than ours, by {difference:.1e}: not comparable")
