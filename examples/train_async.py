"""ANCE beside training: a second process encodes, indexes and mines by copies of the weights it is handed.

    python examples/train_async.py RUN [--steps 300] [--passages 10033] [--max-staleness 100]

The same model and text as train_sync.py. On a CPU the two share its cores (`--refresh-threads`); with a second GPU
training does not notice the refresh. RUN/async/metrics.jsonl says how busy the worker was, how long training waited for
it, and how many steps a generation was behind when it came.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ance_fast as af
from ance_fast.cli.demo.data import model_folder, write_data
from ance_fast.training import AnceConfig, AnceTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--passages", type=int)
    parser.add_argument("--max-staleness", type=int, default=100)
    parser.add_argument("--refresh-threads", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    data = options.run / "data"
    if not data.exists():
        write_data(data, options.passages)
    encoder = af.Encoder.load(
        str(model_folder()), device="cpu", num_layers=2, max_query_length=32, max_document_length=64
    )
    config = AnceConfig(
        output_dir=str(options.run / "async"),
        max_steps=options.steps,
        batch_size=16,
        learning_rate=2e-4,
        dropout=0.0,
        start="bm25",
        refresh="async",
        max_staleness=options.max_staleness,  # training waits rather than exceed it
        first_refresh=max(1, options.steps // 3),
        refresh_every=1,  # new weights as soon as the worker is free
        refresh_threads=options.refresh_threads,
        topk=50,
        save_every=max(1, options.steps // 2),
    )
    dev = af.load_dataset(str(data), split="dev")
    trainer = AnceTrainer(encoder, af.load_dataset(str(data), split="train"), config, dev=dev)
    metrics = trainer.train(resume=options.resume)
    print(json.dumps({"dev": metrics, "seconds": trainer.seconds}))


if __name__ == "__main__":
    main()
