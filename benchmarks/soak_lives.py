"""The lives of runs that are killed: `python -m benchmarks.soak_lives FOLDER` carries out FOLDER/plan.json.

Imports everything, computes nothing, and forks a process for each life of a run, so that a life costs only what it
computes. FOLDER/undisturbed is a run without a kill. FOLDER/run-N lives for a random time, at most 0.7 of what the
undisturbed run took, is killed, is resumed, and so on until it ends, which takes three or four kills; then comes the
next run, until there were enough kills. Where a run has processes of its own, every second kill hits one of these, and
the run has to go on. FOLDER/lives.json receives all kills, and the faults: runs that did not go on, processes that
outlived their run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ance_fast import Encoder, load_dataset
from ance_fast.artifacts import write_json
from ance_fast.training import AnceConfig, AnceTrainer

# A process whose run was killed has to notice and end within so many seconds.
PATIENCE = 30.0


def main() -> None:
    folder = Path(sys.argv[1])
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    started = time.monotonic()
    run = begin(folder, "undisturbed", plan["settings"])
    faults = [] if ended(run, None) == 0 else [f"undisturbed: {last_words(folder, 'undisturbed')}"]
    whole = time.monotonic() - started
    generator = random.Random(plan["seed"])
    kills: list[dict[str, Any]] = []
    number = 0
    while len(kills) < plan["kills"] and not faults:
        number += 1
        faults += lives(folder, f"run-{number:02d}", plan, generator, whole, kills)
    write_json(folder / "lives.json", {"kills": kills, "faults": faults, "seconds_undisturbed": round(whole, 2)})


def lives(
    folder: Path, name: str, plan: dict[str, Any], generator: random.Random, whole: float, kills: list[dict[str, Any]]
) -> list[str]:
    """One run from its beginning to its end; its kills are appended. Returns what went wrong."""
    while True:
        run = begin(folder, name, plan["settings"])
        status = None
        spared = 0
        while status is None:
            after = generator.uniform(0.0, 0.7 * whole) if len(kills) < plan["kills"] else None
            status = ended(run, after)
            if status is None:
                # A third death of its process in a row may rightly end a run.
                victim = chosen(run, generator) if spared < 2 else run
                spared += victim != run
                # Written down before the kill, so that the step is one the run had begun by then.
                kill = {"run": name, "step": step_of(folder / name), "after_seconds": round(after or 0.0, 2)}
                kill |= {"victim": "run" if victim == run else "worker"}
                killed(victim)
                kill["unfinished"] = unfinished(folder / name)
                kills.append(kill)
                print(f"kill {len(kills)}: {kill}", file=sys.stderr, flush=True)
                if victim == run:
                    status = -signal.SIGKILL
                    os.waitpid(run, 0)
        lingering = outlived(run)
        for process in lingering:
            killed(process)
        if lingering:
            return [f"{name}: {len(lingering)} of its processes lived on for {PATIENCE:.0f} s"]
        if status == 0:
            return []
        if status != -signal.SIGKILL:
            return [f"{name}: ended with {status}: {last_words(folder, name)}"]


def begin(folder: Path, name: str, settings: dict[str, Any]) -> int:
    """Start or resume the run FOLDER/NAME in a process and session of its own; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        encoder = Encoder.load(str(folder / "model"), device="cpu", dtype="float32", normalize=True)
        config = AnceConfig(output_dir=str(folder / name), **settings)
        data = str(folder / "data")
        dev = load_dataset(data, split="dev")
        trainer = AnceTrainer(encoder, load_dataset(data, split="train"), config, dev=dev)
        # One that was killed while it prepared its data is not a run yet.
        trainer.train(resume=(folder / name / "config.json").exists())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def ended(run: int, seconds: float | None) -> int | None:
    """How the process ended, None if it still lives after `seconds` (None: wait for as long as it takes)."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(run, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(0.005)


def chosen(run: int, generator: random.Random) -> int:
    """The run itself, or with the same chance one of the other processes of its session."""
    others = [process for process in session(run) if process != run and not keeps_the_books(process)]
    return generator.choice(others) if others and generator.random() < 0.5 else run


def keeps_the_books(process: int) -> bool:
    """Whether it is Python's own, which only counts what the others share."""
    try:
        return b"resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return True


def session(run: int) -> list[int]:
    """The living processes of the session that `run` began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything: state, parent, group, session.
            state, _, _, leader = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(leader) == run and state not in "ZX":
            found.append(int(path.parent.name))
    return sorted(found)


def outlived(run: int) -> list[int]:
    """The processes of a dead run that are still there when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while (found := session(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def killed(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself just now
        os.kill(process, signal.SIGKILL)


def step_of(run: Path) -> int:
    """The step of the newest batch in the log, -1 before the first."""
    try:
        lines = (run / "negatives.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, IndexError, json.JSONDecodeError):
        return -1


def unfinished(run: Path) -> int:
    """How many files and folders were being written; some may be put away while they are counted."""
    return sum(name.startswith(".") for _, folders, files in os.walk(run) for name in [*folders, *files])


def last_words(folder: Path, name: str) -> str:
    lines = (folder / f"{name}.log").read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else "without a word"


if __name__ == "__main__":
    main()
