"""A small run on real text, its logs, and runs that are killed and resumed.

As a program (`training_runs.py PLAN.json`) it carries out a plan of such runs, each in a process forked from one that
has imported everything and computed nothing, so that many of them take little time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from ance_fast import Encoder, load_dataset
from ance_fast.crash_points import arm
from ance_fast.training import AnceConfig, AnceTrainer

SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "max_query_length": 16,
    "max_document_length": 32,
    "first_refresh": 4,
    "refresh_every": 4,
    "topk": 20,
    "logging_steps": 2,
}


def make_trainer(model: Path, data: Path, output: Path, **settings: Any) -> AnceTrainer:
    encoder = Encoder.load(str(model), device="cpu", dtype="float32", normalize=True)
    config = AnceConfig(output_dir=str(output), **{**SETTINGS, **settings})
    dev = load_dataset(str(data), split="dev")
    return AnceTrainer(encoder, load_dataset(str(data), split="train"), config, dev=dev)


def entries(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """Both logs of a run, but for what it took: what two equal runs have in common."""
    both = [*entries(folder), *entries(folder, "negatives.jsonl")]
    return [{key: value for key, value in entry.items() if not key.startswith("seconds")} for entry in both]


def carry_out(model: Path, data: Path, folder: Path, settings: dict[str, Any], kills: dict[str, str]) -> None:
    """Train into `folder`/NAME for each {NAME: crash point} of `kills`, be killed there, and resume to the end.

    A crash point "" is a run that nothing disturbs. On one thread.
    """
    plan = folder / "plan.json"
    content = {"model": str(model), "data": str(data), "folder": str(folder), "settings": settings, "kills": kills}
    plan.write_text(json.dumps(content), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, str(plan)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def _forked(plan: dict[str, Any], name: str, die_at: str, *, resume: bool) -> int:
    """How a run in a process of its own ended: its exit status, or the negative number of the signal."""
    child = os.fork()
    if child == 0:
        try:
            arm(die_at or None)
            output = Path(plan["folder"]) / name
            make_trainer(Path(plan["model"]), Path(plan["data"]), output, **plan["settings"]).train(resume=resume)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _main(path: str) -> None:
    plan = json.loads(Path(path).read_text(encoding="utf-8"))
    for name, die_at in plan["kills"].items():
        ended = _forked(plan, name, die_at, resume=False)
        wanted = -signal.SIGKILL if die_at else 0
        if ended != wanted or (die_at and (Path(plan["folder"]) / name / "final").exists()):
            sys.exit(f"{name}: ended with {ended}, not {wanted}, or only after it was finished")
        if die_at and _forked(plan, name, "", resume=True) != 0:
            sys.exit(f"{name}: did not resume")


if __name__ == "__main__":
    _main(sys.argv[1])
