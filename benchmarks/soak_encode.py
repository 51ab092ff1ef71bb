"""`ance-fast encode` and `ance-fast index`, killed at random moments.

Both commands run as a user would type them, one after the other, again and again; each gets a SIGKILL after a random
time until enough of them have hit, then both may end. Every file of the embeddings and of the index is compared with an
undisturbed run by checksum (manifests without the lines that name times and versions).
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from ance_fast import Encoder, TokenStore
from ance_fast.artifacts import checksum
from ance_fast.cli.demo.data import model_folder
from ance_fast.data import load_corpus
from benchmarks.scale import data_folders

LAYERS, MAX_LENGTH, SHARD_ROWS = 1, 32, 1000
FACTORY = "Flat"


def soak(folder: Path, count: int, generator: random.Random, data: str | None, passages: int) -> dict[str, Any]:
    """Kill the two commands `count` times in `folder`; {"verdict": "as undisturbed" or what differs, "kills", ...}."""
    model, tokens = folder / "model", folder / "tokens"
    encoder = Encoder.load(str(model_folder()), device="cpu", num_layers=LAYERS, max_document_length=MAX_LENGTH)
    encoder.save(model)
    data = data or max(data_folders(folder), key=corpus_bytes)
    corpus = islice(load_corpus(data), passages)
    store = TokenStore.build(corpus, encoder.tokenizer, tokens, max_length=MAX_LENGTH)
    quiet = folder / "undisturbed"
    seconds = {}
    for name in ("embeddings", "index"):
        started = time.monotonic()
        subprocess.run(command(name, folder, quiet), check=True, capture_output=True)
        seconds[name] = time.monotonic() - started
    kills: list[dict[str, Any]] = []
    disturbed = folder / "disturbed"
    while len(kills) < count:
        # The embeddings take most of the time, so the index gets its share of kills by being made anew.
        name = "embeddings" if not (disturbed / "embeddings").exists() else "index"
        after = generator.uniform(0.2, 1.1) * seconds[name]
        process = subprocess.Popen(
            command(name, folder, disturbed), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills.append({"command": name, "after_seconds": round(after, 2), "whole_shards": whole_shards(disturbed)})
            print(f"kill {len(kills)}: {kills[-1]}", file=sys.stderr, flush=True)
            continue
        if process.returncode:
            sys.exit(f"error: {name} ended with {process.returncode} after a kill")
        if name == "index":  # both are done: begin again for the kills that are left
            finish(folder, disturbed)
            verdict = compare(quiet, disturbed)
            if verdict["verdict"] != "as undisturbed":
                return {**verdict, "kills": kills}
            disturbed = folder / f"disturbed-{len(kills)}"
    finish(folder, disturbed)
    return {**compare(quiet, disturbed), "kills": kills, "passages": len(store), "shard_rows": SHARD_ROWS}


def corpus_bytes(path: str) -> int:
    """The size of the corpus of a BEIR folder, compressed or not."""
    return sum(file.stat().st_size for file in Path(path).glob("corpus.jsonl*"))


def finish(folder: Path, place: Path) -> None:
    """Let both commands end, which also put away what a kill right after publishing has left."""
    for name in ("embeddings", "index"):
        subprocess.run(command(name, folder, place), check=True, capture_output=True)


def command(name: str, folder: Path, place: Path) -> list[str]:
    place.mkdir(exist_ok=True)
    cli = [sys.executable, "-m", "ance_fast.cli.main"]
    if name == "embeddings":
        encode = ["encode", folder / "tokens", "-m", folder / "model", "-o", place / "embeddings"]
        return [*cli, *map(str, [*encode, "--shard-rows", SHARD_ROWS, "--batch-tokens", 1024])]
    return [*cli, "index", str(place / "embeddings"), "-o", str(place / "index"), "-f", FACTORY, "--no-check"]


def whole_shards(place: Path) -> int:
    return sum(1 for _ in place.rglob("embeddings-*.npy"))


def compare(quiet: Path, disturbed: Path) -> dict[str, Any]:
    """Every file of both folders by checksum, and whether anything is left beside them."""
    wanted, found = digests(quiet), digests(disturbed)
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    verdict = "as undisturbed" if not differing else f"DIFFERENT: {', '.join(differing)}"
    return {"verdict": verdict, "files": len(wanted)}


def digests(folder: Path) -> dict[str, str]:
    names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    # What a killed save of the index has left is hidden beside it until a later one, a minute on, removes it.
    return {name: checksum(file) for name, file in names.items() if not name.startswith(".index.")}
