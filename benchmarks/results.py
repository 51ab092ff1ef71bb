"""A folder of results: `system.json`, `results.jsonl` (one row a line), `results.md`, `roofline.png`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file, write_json
from ance_fast.errors import ArtifactError
from ance_fast.inspection import info

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RIVALS = ("liger-kernel", "inf-cl", "cut-cross-entropy")


def describe_system(arguments: list[str], threads: int, ceilings: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Everything a reader needs to judge the rows: machine, versions, the exact source, what the ops dispatch to."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        # Where things lie on this machine says nothing to a reader of the results.
        "command": ["python", "-m", "benchmarks.run", *(Path(a).name if a.startswith("/") else a for a in arguments)],
        "source": source(),
        "threads": threads,
        "load_average": os.getloadavg(),
        "strict": os.environ.get("ANCE_FAST_STRICT"),
        "nvidia_smi": nvidia_smi(),
        "rivals": {name: _version(name) for name in RIVALS},
        "ceilings": ceilings,
        **info(),
    }


def source() -> dict[str, Any]:
    """Commit and whether files differ from it. A copy without its history says the commit in GIT_COMMIT."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD") or os.environ.get("GIT_COMMIT")
    status = _output("git", "-C", str(ROOT), "status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def nvidia_smi() -> str | None:
    fields = "name,driver_version,clocks.sm,clocks.mem,power.limit"
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _output(*command: str) -> str | None:
    """Standard output, or None when the program is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(folder: Path, system: dict[str, Any], rows: list[Row]) -> None:
    """Each file appears whole; called after every case, so that an interrupted run keeps what it measured."""
    write_json(folder / "system.json", system)
    with atomic_file(folder / "results.jsonl") as staging:
        staging.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with atomic_file(folder / "results.md") as staging:
        staging.write_text(markdown(system, rows), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """(system, rows). Raises ArtifactError when the folder does not hold results."""
    try:
        system = json.loads((folder / "system.json").read_text(encoding="utf-8"))
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return system, [json.loads(line) for line in lines]
    except OSError as error:
        raise ArtifactError(
            f"{folder} holds no results ({error.strerror}: {error.filename}); "
            f"write some with python -m benchmarks.run --out {folder}"
        ) from error
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{folder}: the results are damaged: {error}") from error


def markdown(system: dict[str, Any], rows: list[Row]) -> str:
    parts = [_heading(system), _contestants(rows)]
    titles = {(row["op"], row["shape"], row["dtype"], row["device"]): None for row in rows}
    for title in titles:
        mine = [row for row in rows if (row["op"], row["shape"], row["dtype"], row["device"]) == title]
        op, shape, dtype, device = title
        parts.append(f"## {op}: {shape}, {dtype}, {device}\n")
        parts.append(_memory_table(mine) if "points" in mine[0] else _table(mine))
    return "\n".join(parts)


def _heading(system: dict[str, Any]) -> str:
    limits = system["ceilings"]
    gemm = ", ".join(
        f"{name} {value['per_second'] / 1e12:.3g} TFLOP/s ({value['side']:.0f}^3)"
        for name, value in limits.items()
        if name != "copy"
    )
    commit = f"commit {system['source']['commit']}{' and local changes' if system['source']['dirty'] else ''}"
    gpu = system["nvidia_smi"] or "no GPU"
    return (
        f"# Results\n\n{system['cpu']['model']}, {system['threads']} threads; {gpu}; "
        f"torch {system['versions']['torch']}; {system['date']}; {commit}.\n\n"
        f"Ceilings of this run: copy {limits['copy']['per_second'] / 1e9:.4g} GB/s read and written; GEMM {gemm}.\n\n"
        "ratio: time of eager fp32 / time of the row, median over rounds (20th to 80th percentile); above 1 is faster. "
        "TFLOP/s and GB/s count what the task requires. of ceiling: time at the ceiling that binds / time. "
        "Errors: largest difference from float64 over the largest element. "
        "Peak: beyond the inputs, the returned gradients included. Rounds: those it was timed in. Masks by doc_ids: "
        "columns that hold the document of the row's target are left out, about a fifth share theirs with another; no "
        "lists of further positives.\n"
    )


def _contestants(rows: list[Row]) -> str:
    notes = {row["provider"]: row["note"] for row in rows}
    return "\n".join([*(f"- {name}: {note}" for name, note in notes.items()), ""])


def _table(rows: list[Row]) -> str:
    unit, factor = ("µs a call", 1e3) if rows[0]["group"] == "overhead" else ("ms", 1.0)
    columns = f"{unit} p20 / p50 / p80 | rounds | ratio | TFLOP/s | GB/s | of ceiling | peak MiB"
    lines = [f"| provider | {columns} | error: result, gradients |", "| --- |" + " ---: |" * 8]
    lines += [_line(row, factor) for row in rows if row["status"] == "ok"]
    reasons = [f"- {row['provider']}: {row['status']}: {row['reason']}" for row in rows if row["status"] != "ok"]
    return "\n".join([*lines, "", *reasons, ""] if reasons else [*lines, ""])


def _line(row: Row, factor: float) -> str:
    ms, ratio, errors = row["ms"], row["ratio"], row["errors"]
    cells = [
        row["provider"],
        " / ".join(f"{ms[key] * factor:.4g}" for key in ("p20", "p50", "p80")),
        str(row["rounds"]),
        "-" if ratio is None else f"{ratio['p50']:.2f} ({ratio['p20']:.2f} to {ratio['p80']:.2f})",
        f"{row['tflops']:.3g}" if "tflops" in row else "-",
        f"{row['gbps']:.4g}" if "gbps" in row else "-",
        f"{row['of_ceiling']:.0%} {row['limit']}" if "of_ceiling" in row else "-",
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}",
        "-" if errors is None else ", ".join(f"{value:.0e}" for value in errors.values()),
    ]
    return f"| {' | '.join(cells)} |"


def _memory_table(rows: list[Row]) -> str:
    points = rows[0]["points"]
    head = "".join(f" B={point['batch']}: MiB |" for point in points)
    lines = [f"| provider |{head} bytes a row, fitted |", "| --- |" + " ---: |" * (len(points) + 1)]
    for row in rows:
        cells = "".join(" - |" if p["bytes"] is None else f" {p['bytes'] / 2**20:.1f} |" for p in row["points"])
        slope = "-" if row["bytes_per_row"] is None else f"{row['bytes_per_row']:.0f}"
        lines.append(f"| {row['provider']} |{cells} {slope} |")
    formula = "".join(f" {point['formula_bytes'] / 2**20:.1f} |" for point in points)
    lines.append(
        f"| allowed: 1.2 x (chunk N 4 + (B + N) D 4), chunk {rows[0]['chunk_rows']} |{formula} "
        f"{rows[0]['formula_bytes_per_row']:.0f} |"
    )
    return "\n".join([*lines, "", *(f"- {memory_verdict(row)}" for row in rows), ""])


def memory_verdict(row: Row) -> str:
    """One sentence: does the measured peak stay within the formula at every batch, and what does a row cost?"""
    begin = f"{row['provider']}: peak memory"
    if row["within"] is None:
        return f"{begin} not measured ({row['reason']})"
    shares = ", ".join(f"{p['bytes'] / p['formula_bytes']:.2f} (B={p['batch']})" for p in row["points"])
    verdict = "within what is allowed" if row["within"] else "BEYOND what is allowed"
    slope = f"fitted {row['bytes_per_row']:.0f} bytes a row, formula {row['formula_bytes_per_row']:.0f}"
    return f"{begin} {verdict}: {shares} of it; {slope}"


def write_roofline(path: Path, system: dict[str, Any], rows: list[Row]) -> None:
    """Rate over arithmetic intensity, both logarithmic: a roof for each dtype, a point for each row."""
    try:
        import matplotlib
    except ImportError:
        print("no roofline.png: matplotlib is missing (pip install 'ance_fast[plots]')", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [row for row in rows if row["status"] == "ok" and row.get("tflops")]
    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    bandwidth = system["ceilings"]["copy"]["per_second"]
    intensities = [row["flops"] / row["bytes"] for row in points]
    roofs = {name: roof["per_second"] for name, roof in system["ceilings"].items() if name != "copy"}
    ridges = [roof / bandwidth for roof in roofs.values()]
    low, high = min([*intensities, *ridges]) / 3, max([*intensities, *ridges]) * 3
    for name, roof in roofs.items():
        ridge = roof / bandwidth
        axes.plot([low, ridge, high], [bandwidth * low / 1e12, roof / 1e12, roof / 1e12], color="0.5", linewidth=1)
        axes.annotate(f"{name}, ridge {ridge:.3g} FLOP/B", (ridge, roof / 1e12), fontsize=8, va="bottom")
    for provider in dict.fromkeys(row["provider"] for row in points):
        mine = [row for row in points if row["provider"] == provider]
        axes.scatter(
            [row["flops"] / row["bytes"] for row in mine], [row["tflops"] for row in mine], s=22, label=provider
        )
    axes.set(xscale="log", yscale="log", xlabel="required FLOP / required byte", ylabel="TFLOP/s")
    axes.legend(fontsize=8)
    with atomic_file(path) as staging:
        figure.savefig(staging, dpi=130, format="png")
    pyplot.close(figure)
