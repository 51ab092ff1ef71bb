"""Training runs of several processes, for test_ranks.py: `training_ranks.py PLAN.json`.

The plan is a list of scenes {"name", "do", "size", ...}. For each of them `size` processes are forked from this one,
which has imported and loaded what they need and computed nothing, and meet over a file as torchrun's would over its
store. Each writes what it found, and the "seconds" it took, to FOLDER/NAME.RANK.json: {"result": ...} or {"error":
class and message}.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import operator
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from training_runs import make_trainer

from ance_fast import Encoder
from ance_fast.crash_points import arm
from ance_fast.errors import DataError
from ance_fast.training import AnceTrainer
from ance_fast.training.ranks import Ranks, join, leave

Plan = dict[str, Any]


def train(plan: Plan, scene: Plan) -> Any:
    """Train into FOLDER/RUN. One rank ("dies": [rank, crash point]) may be killed, raise ("fails": [rank, method of the
    trainer or function of a module]) or have other settings ("differs": [rank, settings]). "model": not the plan's."""
    rank, settings = _rank(), scene["settings"]
    different, changes = scene.get("differs", [None, {}])
    if rank == different:
        settings = settings | changes
    trainer = make_trainer(
        Path(scene.get("model", plan["model"])), Path(plan["data"]), Path(plan["folder"]) / scene["run"], **settings
    )
    killed, point = scene.get("dies", [None, None])
    arm(point if rank == killed else None)
    failing, method = scene.get("fails", [None, None])
    if rank == failing:
        _break(trainer, method)
    written: list[str] = []
    write = trainer.encoder.write

    def counted(folder: Path) -> None:
        written.append(folder.name)
        write(folder)

    trainer.encoder.write = counted  # type: ignore[method-assign]
    report = trainer.train(resume=scene.get("resume", False))
    return {"dev": report, "weights": trainer.encoder.fingerprint(), "wrote": bool(written)}


def talk(plan: Plan, scene: Plan) -> Any:
    """Everything that `Ranks` offers, on values that are easy to check."""
    ranks = join("cpu")
    rank, size = ranks.rank, ranks.size
    found: dict[str, Any] = {"rank": rank, "size": size}
    values = [None, 7, -(2**63), 2**63, True, "text", {"rows": [1, 2]}, b"x" * 100_000]
    found["shared"] = [ranks.share(value if rank == 0 else "not this") == value for value in values]
    found["kinds"] = [type(ranks.share(value)).__name__ for value in values]
    found["each"] = ranks.each(lambda: rank * 10)
    found["first"] = ranks.first(lambda: ["of", rank])
    found["rows"] = []
    for count in (0, 1, size, 7):
        arrays = ranks.rows(count, _numbered)
        found["rows"].append([[array.dtype.str, array.tolist()] for array in arrays])
    matrix = torch.full((7, 2), -1.0)

    def write(start: int, stop: int) -> None:
        matrix[start:stop] = torch.arange(start, stop)[:, None].float()

    ranks.fill(matrix, write)
    found["filled"] = matrix.tolist()
    found["errors"] = [
        _message(lambda: ranks.each(_raise_on(ranks, 1))),
        _message(lambda: ranks.first(_raise_on(ranks, 0))),
        _message(lambda: ranks.rows(9, lambda start, stop: _raise_on(ranks, size - 1)())),
        _message(lambda: ranks.fill(torch.zeros(9, 1), lambda start, stop: _raise_on(ranks, 1)())),
        _message(lambda: ranks.agree("their number", lambda: rank)),
    ]
    ranks.agree("what they share", lambda: ranks.share(rank))
    found["afterwards"] = ranks.each(lambda: "still here")
    return found


def die(plan: Plan, scene: Plan) -> Any:
    """The last rank ends without a word while the others wait for it."""
    ranks = join("cpu")
    ranks.each(lambda: None)
    if ranks.rank == ranks.size - 1:
        os._exit(9)
    return _message(lambda: ranks.each(lambda: None))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _numbered(start: int, stop: int) -> tuple[np.ndarray, ...]:
    rows = np.arange(start, stop)
    return rows.astype(np.int32)[:, None].repeat(3, 1), rows / 2, rows[:, None, None] > np.zeros((1, 2, 1))


def _raise_on(ranks: Ranks, rank: int) -> Callable[[], Any]:
    def work() -> Any:
        if ranks.rank == rank:
            raise DataError("corpus.jsonl:3: no id")
        return ()

    return work


def _message(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def _break(trainer: AnceTrainer, method: str) -> None:
    path, _, name = method.rpartition(".")
    owner: Any = trainer
    if path:
        owner = importlib.import_module(path) if path.startswith("ance_fast.") else operator.attrgetter(path)(trainer)

    def broken(*arguments: Any, **options: Any) -> Any:
        raise DataError(f"{method} is broken")

    setattr(owner, name, broken)


SCENES: dict[str, Callable[[Plan, Plan], Any]] = {"train": train, "talk": talk, "die": die}


def _one_rank(plan: Plan, scene: Plan, rank: int) -> None:
    size, name = scene["size"], scene["name"]
    faulthandler.dump_traceback_later(200, exit=True)
    target = Path(plan["folder"]) / f"{name}.{rank}.json"
    started = time.monotonic()
    try:
        if size > 1:
            local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), **local}
            # Else the address of this host's name, which need not be reachable.
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            meeting = f"file://{plan['folder']}/{name}.meeting"
            dist.init_process_group(
                "gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=60)
            )
        content = {"result": SCENES[scene["do"]](plan, scene)}
    except Exception as error:
        traceback.print_exc()
        content = {"error": f"{type(error).__name__}: {error}"}
    target.write_text(json.dumps(content | {"seconds": time.monotonic() - started}), encoding="utf-8")
    if "error" not in content and size > 1 and scene["do"] != "die":
        leave(Ranks(rank, size))
    os._exit(0)  # gloo now and then hangs when its threads are joined


def _main(path: str) -> None:
    plan = json.loads(Path(path).read_text(encoding="utf-8"))
    # What every process would do again: fill caches, import, and walk through all of that to find garbage.
    Encoder.load(plan["model"], device="cpu")
    for module in ("ir_measures", "torch.utils.tensorboard"):
        importlib.import_module(module)
    gc.freeze()
    for scene in plan["scenes"]:
        children = []
        for rank in range(scene["size"]):
            child = os.fork()
            if child == 0:
                _one_rank(plan, scene, rank)
            children.append(child)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(scene["name"], ended, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main(sys.argv[1])
