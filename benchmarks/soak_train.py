"""Training with one way to refresh, killed at random moments and resumed until it ends, again and again.

All runs of a part are alike: two layers with dropout, two batches a step, a refresh and a checkpoint every few steps.
They are processes forked from a warm one (`soak_lives.py`), on one thread. Of every run that ended:

- it made all its steps, each generation opens and its files are whole, no negative was older than `max_staleness`;
- nothing is left that a kill cut off, neither a file nor a process;
- `sync` and `rolling`: final weights, index, best encoder, generations and both logs (but for how long things took) are
  those of a run that nothing disturbed. What `async` mines depends on time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from ance_fast import Encoder, Index
from ance_fast.artifacts import checksum, write_json
from ance_fast.cli.demo.data import model_folder, write_data
from ance_fast.errors import AnceFastError
from ance_fast.training.generations import Generation

PASSAGES = 600
MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
SETTINGS: dict[str, Any] = {
    "max_steps": 60,
    "batch_size": 12,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "dropout": 0.1,
    "first_refresh": 6,
    "refresh_every": 6,
    "save_every": 4,
    # What a line of the log sums up begins anew at a resume, so lines are equal where checkpoints fall on them.
    "logging_steps": 4,
    "topk": 30,
    "max_query_length": 16,
    "max_document_length": 32,
}
MODES: dict[str, dict[str, Any]] = {
    "sync": {"max_staleness": 5},
    "rolling": {"max_staleness": 10, "rolling_hot": 8, "rerank": 40},
    "async": {"max_staleness": 18},
}
REPEATABLE = ("sync", "rolling")


def soak(folder: Path, count: int, generator: random.Random, mode: str) -> dict[str, Any]:
    """Kill runs `count` times in `folder`; {"verdict": "as undisturbed" or what is wrong, "kills", ...}."""
    write_data(folder / "data", limit=PASSAGES)
    write_model(folder / "model")
    settings = {**SETTINGS, **MODES[mode], "refresh": mode}
    plan = {"settings": settings, "kills": count, "seed": generator.randrange(2**32)}
    write_json(folder / "plan.json", plan)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.soak_lives", str(folder)]
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit(f"error: the {mode} runs could not be carried out")
    lived = json.loads((folder / "lives.json").read_text(encoding="utf-8"))
    faults = list(lived["faults"])
    whole = outcome(folder / "undisturbed")
    for run in sorted(folder.glob("run-??")):
        faults += [f"{run.name}: {fault}" for fault in broken(run, settings)]
        if mode in REPEATABLE:
            found = outcome(run)
            names = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
            faults += [f"{run.name}: {name} differs" for name in names]
    return {
        "verdict": "as undisturbed" if not faults else "DIFFERENT: " + "; ".join(faults),
        "runs": len(list(folder.glob("run-??"))),
        "compared": len(whole) if mode in REPEATABLE else 0,
        "seconds_undisturbed": lived["seconds_undisturbed"],
        "settings": settings,
        "kills": lived["kills"],
    }


def write_model(folder: Path) -> None:
    """A small BERT with random weights, and the tokenizer of the demo's model."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder())
    config = transformers.BertConfig(vocab_size=len(tokenizer), **MODEL)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def broken(run: Path, settings: dict[str, Any]) -> list[str]:
    """What is wrong with a run that ended, whatever else it was to be equal to."""
    faults = []
    batches = entries(run / "negatives.jsonl")
    steps = [step for step in range(settings["max_steps"]) for _ in range(settings["gradient_accumulation_steps"])]
    if [batch["step"] for batch in batches] != steps:
        faults.append(f"{len(batches)} batches in the log, not {len(steps)} in order")
    oldest = max((batch.get("age_max", 0) for batch in batches), default=0)
    if oldest > settings["max_staleness"]:
        faults.append(f"a negative was {oldest} steps old")
    try:
        for path in sorted((run / "generations").glob("step-*")):
            Generation.load(path)
        Index.load(run / "index", fingerprint=Encoder.load(str(run / "final"), device="cpu").fingerprint())
    except AnceFastError as error:
        faults.append(str(error))
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob(".*"))
    if left:
        faults.append(f"left behind: {', '.join(left)}")
    return faults


def outcome(run: Path) -> dict[str, str]:
    """{what a run has made: a digest of it}, without what names times."""
    found = {}
    for place in ("final", "index", "best"):
        for file in sorted(path for path in (run / place).rglob("*") if path.is_file()):
            found[file.relative_to(run).as_posix()] = checksum(file)
    for path in sorted((run / "generations").glob("step-*")):
        made = Generation.load(path)
        facts = f"{made.number} {made.step} {made.fingerprint}".encode()
        found[f"generations/{path.name}"] = digest(facts + made.table.candidates.tobytes())
    for name in ("metrics.jsonl", "negatives.jsonl"):
        timeless = [{k: v for k, v in entry.items() if not k.startswith("seconds")} for entry in entries(run / name)]
        found[name] = digest(json.dumps(timeless).encode())
    found["checkpoints"] = " ".join(path.name for path in sorted((run / "checkpoints").iterdir()))
    return found


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
