"""Every op of ours once, forward and backward, on odd shapes and checked against float64; small enough for
compute-sanitizer.

    compute-sanitizer --tool memcheck python -m benchmarks.gpu_smoke [--device cuda]
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.ops.cases import odd_cases
from benchmarks.ops.providers import providers
from benchmarks.ops.suite import check_case


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    ours = [provider for provider in providers() if provider.name == "ours (auto)"]
    for case in odd_cases(options.device):
        for row in check_case(case, ours):
            errors = ", ".join(f"{name} {value:.0e}" for name, value in row["errors"].items())
            print(f"{row['op']} {row['shape']} {row['dtype']}: {errors}; {', '.join(row['dispatch'])}", flush=True)


if __name__ == "__main__":
    main()
