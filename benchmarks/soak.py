"""Encode, index and train while being killed at random moments; the result has to be that of undisturbed runs.

    python -m benchmarks.soak --out DIR [--parts encode,sync,rolling,async] [--kills 20] [--seed 0] [--data DIR]

`encode` is `ance-fast encode` and `ance-fast index` (`soak_encode.py`), the others are training with that way to
refresh (`soak_train.py`). Each part is killed `--kills` times; the exit status is 0 only if every part is as it should
be. DIR receives soak.json, written anew after each part; parts that are not asked for keep what it says of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ance_fast.artifacts import write_json
from ance_fast.training.config import REFRESH
from benchmarks import results, soak_encode, soak_train

PARTS = ("encode", *(mode for mode in REFRESH if mode != "none"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="[%(default)s]")
    parser.add_argument("--kills", type=int, default=20, help="of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="encode: corpus [one beside the repository, else the demo's]")
    parser.add_argument("--passages", type=int, default=20000, help="encode: at most so many")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"--parts {','.join(unknown)}: choose from {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "soak.json"
    report: dict[str, Any] = {"parts": {}}
    if file.exists():
        report["parts"] = json.loads(file.read_text(encoding="utf-8")).get("parts", {})
    for part in parts:
        report["parts"][part] = carried_out(part, options)
        report["parts"][part]["system"] = results.describe_system(sys.argv[1:], os.cpu_count() or 1, {})
        write_json(file, report)
        print(f"{part}: {len(report['parts'][part]['kills'])} kills: {report['parts'][part]['verdict']}", flush=True)
    sys.exit(any(report["parts"][part]["verdict"] != "as undisturbed" for part in parts))


def carried_out(part: str, options: argparse.Namespace) -> dict[str, Any]:
    generator = random.Random(f"{options.seed} {part}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        if part == "encode":
            report = soak_encode.soak(Path(folder), options.kills, generator, options.data, options.passages)
        else:
            report = soak_train.soak(Path(folder), options.kills, generator, part)
    return {**report, "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    main()
