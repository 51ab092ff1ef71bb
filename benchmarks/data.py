"""Reading microsoft/ANCE's token caches beside a loop over single records: one process, rounds in turn.

    python -m benchmarks.run --suite data --out DIR [--records 200000] [--length 512] [--mean 77] [--loop 4000]

A cache of random tokens is written, records of `--length` ids of which `--mean` are no padding on average, as MS MARCO
passages have. Three read it:

- loop: each record is sought, read, parsed and made into tensors of ids, mask and token types, as the original's data
  set does it for its data loader. Only the first `--loop` records, since it is slow.
- records: `RecordFile.tokens`, token lists of all records in memory.
- store: `TokenStore.build`, a token store on disk: both passes, hashes, files and their fsync, in `--threads` threads.

Before anything is timed all three have to give the same tokens. A round times each once, in an order that alternates;
the rate is records a second, the ratio is taken within a round, its median and 20th to 80th percentile given. The file
is in the page cache. DIR receives data.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ance_fast.artifacts import write_json
from ance_fast.data import TokenStore, load_corpus
from ance_fast.data.record_file import RecordFile, write_records
from ance_fast.data.tokenize import Tokens
from benchmarks import results

VOCABULARY = 30_000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run --suite data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--mean", type=int, default=77)
    parser.add_argument("--loop", type=int, default=4000, help="records that the loop reads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(Path(folder), options.records, options.length, options.mean, options.loop, options.threads)
        refuse_other_tokens(problem)
        measured = beside_the_loop(problem, options.rounds)
    report: dict[str, Any] = {
        "system": results.describe_system(list(arguments or sys.argv[1:]), options.threads, {}),
        **{name: getattr(options, name) for name in ("records", "length", "mean", "loop")},
        **measured,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "data.json", report)
    for name, rate in measured["records_per_second"].items():
        print(f"{name}: {rate:,.0f} records/s")
    for name, ratio in measured["over_loop"].items():
        print(f"{name}: {ratio['p50']:.0f} times the loop ({ratio['p20']:.0f} to {ratio['p80']:.0f})")


def beside_the_loop(problem: Problem, rounds: int) -> dict[str, Any]:
    """Rates of the three, and how the two compare with the loop."""
    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "loop": (problem.by_loop, problem.looped),
        "records": (problem.by_records, problem.count),
        "store": (problem.by_store, problem.count),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            read, count = contestants[name]
            started = time.perf_counter()
            read()
            if number:  # the first round warms up
                rates[name].append(count / (time.perf_counter() - started))
    ratios = {}
    for name in ("records", "store"):
        within = [ours / theirs for ours, theirs in zip(rates[name], rates["loop"], strict=True)]
        ratios[name] = dict(zip(("p20", "p50", "p80"), np.percentile(within, [20, 50, 80]).tolist(), strict=True))
    return {
        "records_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "over_loop": ratios,
    }


class Problem:
    """A cache of `count` records in `folder`, of which the loop reads the first `looped`."""

    def __init__(self, folder: Path, count: int, length: int, mean: int, looped: int, threads: int) -> None:
        self.folder, self.count, self.length, self.threads = folder, count, length, threads
        self.looped = min(looped, count)
        vocabulary = {"[CLS]": 0, "[PAD]": 1, "[UNK]": 2, **{f"w{n}": n for n in range(3, VOCABULARY)}}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "[UNK]")),
            cls_token="[CLS]",
            pad_token="[PAD]",
            unk_token="[UNK]",
        )
        generator = np.random.default_rng(0)
        lengths = np.clip(generator.gamma(4, mean / 4, count).astype(np.int64), 2, length)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = generator.integers(3, VOCABULARY, offsets[-1])
        values[offsets[:-1]] = 0
        write_records(folder / "passages", length, 1, [Tokens(values, offsets, 0)])
        self.records = RecordFile(folder / "passages")

    def by_loop(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(ids, mask, token types) of each record, padded."""
        # That a list of arrays is a slow way to make a tensor is what torch says of it, and why it is measured.
        warnings.filterwarnings("ignore", "Creating a tensor from a list of numpy.ndarrays", UserWarning)
        made = []
        size = 4 + 4 * self.length
        with open(self.folder / "passages", "rb") as file:
            for number in range(self.looped):
                file.seek(number * size)
                record = file.read(size)
                filled = int.from_bytes(record[:4], "big")
                ids = np.frombuffer(record[4:], dtype=np.int32)
                rest = self.length - filled
                made.append(
                    (
                        torch.tensor([ids], dtype=torch.int)[0],
                        torch.tensor([1] * filled + [0] * rest, dtype=torch.bool),
                        torch.tensor([1] * filled + [0] * rest, dtype=torch.uint8),
                    )
                )
        return made

    def by_records(self) -> Tokens:
        """All token lists."""
        return self.records.tokens(np.arange(self.count))

    def by_store(self) -> TokenStore:
        """A token store, made anew."""
        place = self.folder / f"store-{time.monotonic_ns()}"
        return TokenStore.build(
            load_corpus(f"ance-cache:{self.folder}"),
            self.tokenizer,
            place,
            max_length=self.length,
            num_proc=self.threads,
        )


def refuse_other_tokens(problem: Problem) -> None:
    """All have to give the same."""
    found, store = problem.by_records(), problem.by_store()
    for number, (ids, mask, _) in enumerate(problem.by_loop()):
        expected = ids[mask].numpy()
        ours = found.values[found.offsets[number] : found.offsets[number + 1]]
        if not np.array_equal(expected, ours) or not np.array_equal(expected, store.tokens(number)):
            raise RuntimeError(f"record {number} is read differently: not comparable")


if __name__ == "__main__":
    main()
