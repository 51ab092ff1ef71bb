"""The demo's four trained rows on any BEIR folder, through `ance-fast train`, for several seeds, with significance.

    python -m benchmarks.train_rows beir:DIR --output bench-out/NAME [--seeds 1 2 3] [--rows bm25 ance] [--jobs 2]

Prints the commands and a Markdown table: mean and range over seeds, and the largest p of ANCE against the row (paired
two-sided t-test on nDCG@10, one test a seed). Finished runs are kept, so an interrupted series goes on. With `--jobs 2`
two runs share the machine, one thread each: the metrics stay what they are, the seconds do not, so none are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ance_fast.cli.demo.data import model_folder
from ance_fast.cli.demo.experiment import LAYERS, METRICS, PASSAGE_TOKENS, QUERY_TOKENS, SHARED, Row, trained_rows
from ance_fast.data import load_dataset, read_run
from ance_fast.evaluation import evaluate, paired_significance

ROWS = [row.name for row in trained_rows(150)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default=str(model_folder()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--learning-rate", type=float, default=SHARED["learning_rate"])
    parser.add_argument("--split", default="test", help="queries that are measured")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--topk", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    jobs = [
        (options.output / f"{row.name}-{seed}", command(options, row.settings, seed))
        for seed in options.seeds
        for row in chosen_rows(options)
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(run_one, folder, arguments, options.jobs) for folder, arguments in jobs]:
            done.result()
    report(options)


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    return [row for row in trained_rows(options.steps) if row.name in options.rows]


def command(options: argparse.Namespace, settings: dict[str, Any], seed: int) -> list[str]:
    """The `ance-fast train` arguments of a row."""
    everything = {
        "num_layers": LAYERS,
        "max_query_length": QUERY_TOKENS,
        "max_document_length": PASSAGE_TOKENS,
        "max_steps": options.steps,
        **SHARED,
        **settings,
        "learning_rate": options.learning_rate,
        "topk": options.topk,
        "seed": seed,
        "test_split": options.split,
    }
    flags = [part for key, value in everything.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return ["train", options.data, "-m", options.model, *flags]


def run_one(folder: Path, arguments: list[str], jobs: int) -> None:
    """Train one row unless its run file is there."""
    if (folder / "test.trec").exists():
        return
    resume = ["--resume"] if any((folder / "checkpoints").glob("step-*")) else []
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})}
    shown = " ".join(["ance-fast", *arguments, "-o", str(folder)])
    print(shown.replace(str(model_folder()), "MINILM"), flush=True)
    subprocess.run(
        [sys.executable, "-m", "ance_fast.cli.main", *arguments, "-o", str(folder), *resume],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def report(options: argparse.Namespace) -> None:
    """Print the table."""
    qrels = load_dataset(options.data, split=options.split).qrels
    scores: dict[str, list[Any]] = {}
    for row in chosen_rows(options):
        paths = [options.output / f"{row.name}-{seed}" / "test.trec" for seed in options.seeds]
        scores[row.name] = [evaluate(read_run(path), qrels, METRICS) for path in paths]
    print(f"\n| row | {' | '.join(METRICS)} | largest p |\n| --- |{' ---: |' * (len(METRICS) + 1)}")
    rows = []
    for row in chosen_rows(options):
        cells = []
        for metric in METRICS:
            values = [result[metric] for result in scores[row.name]]
            cells.append(f"{sum(values) / len(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        pairs = zip(scores.get("ance", []), scores[row.name], strict="ance" in scores)
        p = max((paired_significance(a, b, METRICS[0]).p_value for a, b in pairs), default=None)
        shown = "-" if row.name == "ance" or p is None else f"{p:.2g}"
        print(f"| {row.label} | {' | '.join(cells)} | {shown} |")
        rows.append({"row": row.name, "scores": [dict(result) for result in scores[row.name]], "largest_p": p})
    print(json.dumps({"data": options.data, "seeds": options.seeds, "steps": options.steps, "rows": rows}))


if __name__ == "__main__":
    main()
