"""The encoding pipeline: how fast the packer is, what each stage costs, and what overlapping them saves.

    python -m benchmarks.run --suite pipeline --out DIR [--data DIR] [--passages 2000] [--rounds 7] [--device cpu]

Packing is timed alone, in CPU seconds of one thread. Then two ways from a token store to embeddings on disk and in an
exact index alternate in one process: `encode_corpus` with a sink, and the same steps one after the other (encode all,
save, index). Both have to hold the same vectors. DIR receives pipeline.json, with the table of stages of the median
round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast import Encoder, Index, TokenStore, encode_corpus
from ance_fast.artifacts import write_json
from ance_fast.cli.demo.data import model_folder
from ance_fast.data import load_corpus
from ance_fast.data.packing import Packer
from ance_fast.encoding import MatrixSink, StageTimes
from benchmarks import results
from benchmarks.scale import data_folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run --suite pipeline", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="corpus [one beside the repository, else the demo's]")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, help="token budget [measured]")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        report = measure(Path(folder), options)
    report["system"] = results.describe_system(list(arguments or sys.argv[1:]), options.threads, {})
    write_json(options.out / "pipeline.json", report)
    print(json.dumps({name: value for name, value in report.items() if name != "system"}, indent=1))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    encoder = Encoder.load(str(model_folder()), device=options.device, max_document_length=options.max_length)
    data = options.data or max(data_folders(folder), key=lambda path: Path(path, "corpus.jsonl.gz").stat().st_size)
    started = time.process_time()
    store = TokenStore.build(
        islice(load_corpus(data), options.passages), encoder.tokenizer, folder / "tokens", max_length=options.max_length
    )
    tokenised = time.process_time() - started
    queries = encoder.encode_tokens(store, np.arange(min(256, len(store))))
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds + 1):  # the first warms up
        contestants = [piped, one_after_the_other]
        if number % 2:
            contestants.reverse()
        outcome = {contestant.__name__: contestant(encoder, store, folder, options) for contestant in contestants}
        difference = float(
            np.abs(outcome["piped"].pop("vectors") - outcome["one_after_the_other"].pop("vectors")).max()
        )
        if difference > (1e-5 if options.device == "cpu" else 1e-2):
            sys.exit(f"error: the two ways differ by {difference:.1e}: not comparable")
        rounds.append({**outcome, "difference": difference})
    rounds = sorted(rounds[1:], key=lambda one: one["piped"]["seconds"])
    times = StageTimes()
    index = Index.build(encoder.encode_tokens(store).cpu().numpy())
    with times.running(), times.host("search"):
        index.search(queries.cpu().numpy(), 100)
    return {
        "corpus": Path(data).name,
        "passages": len(store),
        "tokens": store.num_tokens,
        "tokens_a_passage": {"mean": float(store.lengths.mean()), "max": int(store.lengths.max())},
        "packing": [packing(store, budget) for budget in (1024, 16384)],
        "tokenise_passages_per_cpu_second": len(store) / tokenised,
        "search_queries_per_second": len(queries) / times.wall,
        "ratios": {
            kind: spread([one["one_after_the_other"][kind] / one["piped"][kind] for one in rounds])
            for kind in ("seconds", "cpu_seconds")
        },
        "max_difference": max(one["difference"] for one in rounds),
        "median_round": rounds[len(rounds) // 2]["piped"]["summary"],
    }


def piped(encoder: Encoder, store: TokenStore, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    place, times = folder / "piped", StageTimes()
    shutil.rmtree(place, ignore_errors=True)
    wall, cpu = time.perf_counter(), time.process_time()
    matrix = np.empty((len(store), encoder.dim), np.float32)
    encode_corpus(encoder, store, place, batch_tokens=options.batch_tokens, sinks=[MatrixSink(matrix)], times=times)
    index = Index.build(matrix, store.ids)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "summary": times.summary(),
        "vectors": index.reconstruct(np.arange(len(store))),
    }


def one_after_the_other(
    encoder: Encoder, store: TokenStore, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = encoder.encode_tokens(store, batch_tokens=options.batch_tokens).cpu().numpy()
    np.save(folder / "vectors.npy", vectors)
    index = Index.build(vectors, store.ids)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "vectors": index.reconstruct(np.arange(len(store))),
    }


def packing(store: TokenStore, budget: int, repeats: int = 7) -> dict[str, Any]:
    """Passages a CPU second of planning and packing the whole store; the store is repeated to 200,000 passages."""
    packer = Packer(store)
    rows = np.resize(np.arange(len(store)), 200_000)
    rates = []
    for _ in range(repeats):
        started = time.process_time()
        tokens = sum(batch.num_tokens for batch in packer.batches(rows, token_budget=budget))
        rates.append(len(rows) / (time.process_time() - started))
    assert tokens == int(store.lengths[rows].sum())
    return {"passages_per_cpu_second": spread(rates), "token_budget": budget}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
