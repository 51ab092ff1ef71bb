"""Two result folders of `benchmarks.run`, row by row.

    python -m benchmarks.compare A B [--tolerance 0.1]

A row has regressed when B's median time exceeds A's by more than the tolerance and lies beyond noise: B's 20th
percentile above A's 80th. Exits with 1 when one has, with 2 when a folder holds no results.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_fast.errors import ArtifactError
from benchmarks import results

Key = tuple[str, ...]
KEY = ("device", "op", "shape", "dtype", "provider")


@dataclass(frozen=True)
class Change:
    """Times of one row, each {"p20", "p50", "p80"} in ms."""

    key: Key
    before: dict[str, float]
    after: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.after["p50"] / self.before["p50"]

    @property
    def beyond_noise(self) -> bool:
        return self.after["p20"] > self.before["p80"] or self.after["p80"] < self.before["p20"]

    def verdict(self, tolerance: float) -> str:
        if not self.beyond_noise:
            return "noise"
        if self.ratio > 1 + tolerance:
            return "REGRESSED"
        return "faster" if self.ratio < 1 / (1 + tolerance) else "within tolerance"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    parser.add_argument("--tolerance", type=float, default=0.1, help="allowed growth of the median [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        (system_a, rows_a), (system_b, rows_b) = (results.read(folder) for folder in (options.before, options.after))
    except ArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for warning in differences(system_a, system_b):
        print(f"warning: {warning}", file=sys.stderr)
    before, after = timed(rows_a), timed(rows_b)
    changes = [Change(key, before[key], after[key]) for key in before if key in after]
    if not changes:
        print("error: the folders have no timed row in common", file=sys.stderr)
        sys.exit(2)
    print(table(changes, options.tolerance))
    for folder, missing in (
        (options.before, before.keys() - after.keys()),
        (options.after, after.keys() - before.keys()),
    ):
        for key in sorted(missing):
            print(f"only in {folder}: {', '.join(key)}")
    regressed = [change for change in changes if change.verdict(options.tolerance) == "REGRESSED"]
    if regressed:
        print(
            f"{len(regressed)} of {len(changes)} rows regressed by more than {options.tolerance:.0%}", file=sys.stderr
        )
        sys.exit(1)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes times of the two runs hard to compare."""
    looked_at = {
        "processor": lambda system: system["cpu"]["model"],
        "GPU": lambda system: [gpu["name"] for gpu in system["gpu"]],
        "number of threads": lambda system: system["threads"],
        "torch": lambda system: system["versions"]["torch"],
    }
    found = [(name, read(a), read(b)) for name, read in looked_at.items()]
    return [f"another {name}: {left or 'none'} and {right or 'none'}" for name, left, right in found if left != right]


def timed(rows: list[results.Row]) -> dict[Key, dict[str, float]]:
    return {tuple(row[name] for name in KEY): row["ms"] for row in rows if row["status"] == "ok" and "ms" in row}


def table(changes: list[Change], tolerance: float) -> str:
    lines = ["| row | A ms (p20 to p80) | B ms (p20 to p80) | B / A | |", "| --- | ---: | ---: | ---: | --- |"]
    for change in changes:
        times = (f"{ms['p50']:.4g} ({ms['p20']:.4g} to {ms['p80']:.4g})" for ms in (change.before, change.after))
        verdict = change.verdict(tolerance)
        lines.append(f"| {', '.join(change.key)} | {' | '.join(times)} | {change.ratio:.3f} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
