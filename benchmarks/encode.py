"""`Encoder.encode` beside `SentenceTransformer.encode`: one process, one thread, alternating.

    python -m benchmarks.encode [--data beir:DIR] [--passages 400] [--max-length 128] [--rounds 7]

Both get the same texts and weights; equality of the outputs is asserted before anything is timed. sentence-transformers
runs at batch sizes 8, 32 (its default) and 128. A round times every contestant once, in an order that alternates; a
ratio is theirs / ours within a round, so that what the machine does meanwhile touches both, and the median over rounds
is reported with its spread. CPU time counts this process's own seconds, wall time all of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from ance_fast import Encoder, __version__
from ance_fast.cli.demo.data import model_folder, write_data
from ance_fast.data import load_corpus
from ance_fast.inspection import cpu_model
from ance_fast.ops.dispatch import dispatch_counts

BATCH_SIZES = (8, 32, 128)
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "debian"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="corpus whose passages are encoded [a Debian one where it is, else the demo's]")
    parser.add_argument("--model", default=None, help="checkpoint [the packaged all-MiniLM-L6-v2]")
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import __version__ as theirs_version

    checkpoint = options.model or str(model_folder())
    texts = sample(options.data, options.passages)
    ours = Encoder.load(checkpoint, device="cpu", max_document_length=options.max_length)
    theirs = SentenceTransformer(checkpoint, device="cpu")
    theirs.max_seq_length = options.max_length
    contestants: dict[str, Callable[[], np.ndarray]] = {"ance_fast": lambda: ours.encode_document(texts)}
    for size in BATCH_SIZES:
        contestants[f"sentence-transformers batch {size}"] = functools.partial(theirs.encode, texts, batch_size=size)
    outputs = {name: encode() for name, encode in contestants.items()}  # also the warm-up
    difference = max(float(np.abs(out - outputs["ance_fast"]).max()) for out in outputs.values())
    if difference > 1e-5:
        sys.exit(f"outputs differ by {difference:.1e}: not comparable")
    rounds = [time_round(contestants, reverse=number % 2 == 1) for number in range(options.rounds)]
    report = {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"ance_fast": __version__, "sentence-transformers": theirs_version, "torch": torch.__version__},
        "threads": options.threads,
        "load_average": os.getloadavg()[0],
        "passages": len(texts),
        "max_length": options.max_length,
        "max_abs_difference": difference,
        "ratios": {kind: ratios(rounds, kind) for kind in ("cpu", "wall")},
        "dispatch": dispatch_counts(),
        "encoder": ours.info(),
    }
    for kind, per in report["ratios"].items():
        for name, ratio in per.items():
            print(
                f"{kind:>4} time: {name} / ance_fast = {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            )
    print(json.dumps(report))


def sample(data: str | None, count: int) -> list[str]:
    """Evenly spaced passages of a corpus."""
    if data is None and not DEFAULT_DATA.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder) / "data", None)
            return sample(str(Path(folder) / "data"), count)
    documents = [document.full_text for document in load_corpus(data or str(DEFAULT_DATA))]
    rows = np.linspace(0, len(documents) - 1, count).astype(int)
    return [documents[row] for row in rows]


def time_round(contestants: dict[str, Callable[[], Any]], reverse: bool) -> dict[str, tuple[float, float]]:
    """(CPU seconds, wall seconds) of each contestant."""
    names = list(contestants)[::-1] if reverse else list(contestants)
    seconds = {}
    for name in names:
        cpu, wall = time.process_time(), time.perf_counter()
        contestants[name]()
        seconds[name] = (time.process_time() - cpu, time.perf_counter() - wall)
    return seconds


def ratios(rounds: list[dict[str, tuple[float, float]]], kind: str) -> dict[str, dict[str, float]]:
    """Theirs / ours over the rounds; "best batch" takes the batch size with the lowest median time."""
    column = 0 if kind == "cpu" else 1
    names = [name for name in rounds[0] if name != "ance_fast"]
    best = min(names, key=lambda name: statistics.median(one[name][column] for one in rounds))
    result = {}
    for label, name in [*((name, name) for name in names), (f"best batch ({best.split()[-1]})", best)]:
        values = [one[name][column] / one["ance_fast"][column] for one in rounds]
        result[label] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return result


if __name__ == "__main__":
    main()
