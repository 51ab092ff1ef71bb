"""One command for every suite of measurements.

    python -m benchmarks.run --suite NAME --out DIR [options of the suite]

NAME: ops, encode, ring, index, topk, pipeline, scale, refresh, sampler, data, answers. `--suite NAME --help` shows what
one measures and its options.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Suite -> the module whose `main(arguments)` runs it.
SUITES = {
    "ops": "benchmarks.ops.run",
    "encode": "benchmarks.encode",
    "ring": "benchmarks.ring",
    "index": "benchmarks.index",
    "topk": "benchmarks.topk",
    "pipeline": "benchmarks.pipeline",
    "scale": "benchmarks.scale",
    "refresh": "benchmarks.refresh.run",
    "sampler": "benchmarks.sampler",
    "data": "benchmarks.data",
    "answers": "benchmarks.answers",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.run", description=(__doc__ or "").splitlines()[0], add_help=False, allow_abbrev=False
    )
    parser.add_argument("--suite", choices=SUITES, default="ops")
    options, rest = parser.parse_known_args(arguments)
    importlib.import_module(SUITES[options.suite]).main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
