"""Exact top-k search beside FAISS flat and torch mm + topk, in one process.

    python -m benchmarks.topk --out DIR [--device cpu|cuda] [--shapes small|full] [--rounds N] [--threads 1]

Each round times every contestant once, in an order that alternates; ratios to FAISS are taken within a round. Before it
is timed each result is held against float64: positions must be those of the exact search wherever the float64 scores
differ by more than the precision of the inputs allows (1e-6 relative in fp32). Vectors are random and normalised, made
once for each width. DIR receives system.json, results.jsonl and results.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ance_fast.artifacts import atomic_file, write_json
from ance_fast.ops import topk_inner_product
from benchmarks import results
from benchmarks.ops.measure import Clock, CpuClock, CudaClock

Search = Callable[[], tuple[Any, Any]]  # scores and positions [n, k]
CHECKED_QUERIES = 16
HALF = "ours, vectors in fp16"
MATRIX_SCORES = 2**28  # what mm + topk may hold at once
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}  # of exact products, added up in fp32
SHAPES = {
    "small": [(50_000, 384, n, k) for n in (1, 32, 1024) for k in (10, 200)],
    "full": [(1_000_000, 384, n, 200) for n in (1, 32, 1024)],
}


@dataclass(frozen=True)
class Case:
    vectors: Tensor  # [N, D]
    queries: Tensor  # [n, D], of the same dtype
    k: int

    @functools.cached_property
    def half(self) -> Tensor:
        return self.vectors.half()

    @property
    def title(self) -> str:
        (count, dim), rows = self.vectors.shape, self.queries.shape[0]
        dtype = str(self.vectors.dtype).removeprefix("torch.")
        return f"{rows} x {count} x {dim}, k {self.k}, {dtype}, {self.vectors.device.type}"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    torch.set_num_threads(options.threads)
    clock: Clock = CpuClock(options.threads) if options.device == "cpu" else CudaClock()
    system = results.describe_system(argv, options.threads, {}) | {"faiss": faiss_version()}
    system["command"] = ["python", "-m", "benchmarks.topk", *argv]
    rows: list[results.Row] = []
    dtypes = [torch.float32] if options.device == "cpu" else [torch.float32, torch.float16, torch.bfloat16]
    for count, dim, n, k in SHAPES[options.shapes]:
        for dtype in dtypes:
            case = make_case(count, dim, n, k, dtype, options.device)
            print(case.title, file=sys.stderr, flush=True)
            rows += run_case(case, contestants(case, options.threads), options.rounds, clock)
            write(options.out, system, rows)
    print((options.out / "results.md").read_text(encoding="utf-8"))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.topk", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", choices=list(SHAPES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the results")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return options


_VECTORS: dict[tuple[int, int], Tensor] = {}


def make_case(count: int, dim: int, n: int, k: int, dtype: torch.dtype, device: str) -> Case:
    if (count, dim) not in _VECTORS:
        draw = torch.Generator().manual_seed(0)
        _VECTORS.clear()
        vectors = torch.empty(count, dim)
        for tile in vectors.split(65536):
            torch.nn.functional.normalize(torch.randn(tile.shape, generator=draw), out=tile)
        _VECTORS[count, dim] = vectors
    queries = torch.nn.functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(1)))
    return Case(_VECTORS[count, dim].to(device, dtype), queries.to(device, dtype), k)


def faiss_version() -> str:
    for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"):
        if importlib.util.find_spec("faiss"):
            try:
                return f"{name} {importlib.metadata.version(name)}"
            except importlib.metadata.PackageNotFoundError:
                continue
    return "not installed"


def contestants(case: Case, threads: int) -> dict[str, Search]:
    """By name, the one that ratios refer to first."""
    found: dict[str, Search] = {}
    if importlib.util.find_spec("faiss"):
        found |= faiss_cpu(case, threads) if case.vectors.device.type == "cpu" else faiss_gpu(case)
    found["torch mm + topk"] = lambda: mm_and_topk(case)
    found["ours"] = lambda: topk_inner_product(case.queries, case.vectors, case.k)
    if case.vectors.device.type == "cpu":
        found[HALF] = lambda: topk_inner_product(case.queries, case.half, case.k)
    return found


def faiss_cpu(case: Case, threads: int) -> dict[str, Search]:
    import faiss

    faiss.omp_set_num_threads(threads)
    queries, vectors = case.queries.numpy(), case.vectors.numpy()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return {
        "faiss IndexFlatIP": lambda: index.search(queries, case.k),
        "faiss knn": lambda: faiss.knn(queries, vectors, case.k, metric=faiss.METRIC_INNER_PRODUCT),
    }


def faiss_gpu(case: Case) -> dict[str, Search]:
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        return {}
    importlib.import_module("faiss.contrib.torch_utils")  # lets knn_gpu take tensors
    resources = faiss.StandardGpuResources()
    return {
        "faiss knn_gpu": lambda: faiss.knn_gpu(
            resources, case.queries, case.vectors, case.k, metric=faiss.METRIC_INNER_PRODUCT
        )
    }


def mm_and_topk(case: Case) -> tuple[Tensor, Tensor]:
    rows = max(1, MATRIX_SCORES // case.vectors.shape[0])
    found = [torch.topk((block @ case.vectors.T).float(), case.k) for block in case.queries.split(rows)]
    return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])


def run_case(case: Case, searches: dict[str, Search], rounds: int, clock: Clock) -> list[results.Row]:
    differing = {
        name: disagreements(case, case.half if name == HALF else case.vectors, search)
        for name, search in searches.items()
    }
    for name in ("ours", HALF):
        if differing.get(name):
            raise SystemExit(f"error: {case.title}: {name} differs from float64 at {differing[name]} places")
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for number in range(rounds):
        for name in list(searches)[:: 1 if number % 2 else -1]:
            seconds[name].append(clock.sample(searches[name], 1)[0])
    base = seconds[next(iter(searches))]
    flops = 2.0 * case.queries.shape[0] * case.vectors.numel()
    return [
        {
            "op": "topk_inner_product",
            "case": case.title,
            "provider": name,
            "clock": clock.name,
            "rounds": rounds,
            "ms": spread([1e3 * t for t in times]),
            "ratio": spread([reference / t for reference, t in zip(base, times, strict=True)]),
            "queries_per_second": case.queries.shape[0] / statistics.median(times),
            "tflops": flops / statistics.median(times) / 1e12,
            "positions_differing": differing[name],
        }
        for name, times in seconds.items()
    ]


def disagreements(case: Case, vectors: Tensor, search: Search) -> int:
    """Places of the first queries that hold another vector than the exact search does and not a score equal to its."""
    positions = torch.as_tensor(search()[1])[:CHECKED_QUERIES].cpu()
    queries = case.queries[:CHECKED_QUERIES].double().cpu()
    exact = torch.cat([queries @ tile.double().cpu().T for tile in vectors.split(65536)], 1)
    wanted = exact.topk(case.k).values
    mine = exact.gather(1, positions)
    scale = (queries.norm(dim=1) * vectors[:1].double().cpu().norm(dim=1))[:, None]
    wrong = (mine - wanted).abs() > TOLERANCE[vectors.dtype] * scale
    repeated = positions.sort(dim=1).values.diff(dim=1) == 0
    return int(wrong.sum() + repeated.sum())


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: ordered[round(share * (len(ordered) - 1))] for name, share in (("p20", 0.2), ("p50", 0.5), ("p80", 0.8))
    }


def write(folder: Path, system: dict[str, Any], rows: list[results.Row]) -> None:
    """Called after every case, so that an interrupted run keeps what it measured."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "system.json", system)
    with atomic_file(folder / "results.jsonl") as staging:
        staging.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with atomic_file(folder / "results.md") as staging:
        staging.write_text(markdown(system, rows), encoding="utf-8")


def markdown(system: dict[str, Any], rows: list[results.Row]) -> str:
    lines = [
        f"# Exact top-k\n\n{system['cpu']['model']}, {system['threads']} threads; {system['nvidia_smi'] or 'no GPU'}; "
        f"torch {system['versions']['torch']}, faiss {system['faiss']}; {system['date']}; "
        f"commit {system['source']['commit']}.\n\n"
        "ratio: time of the first row / time of the row within a round, median "
        f"(20th to 80th percentile); above 1 is faster. Differing: places of {CHECKED_QUERIES} queries at most that do "
        "not agree with float64.\n"
    ]
    for title in dict.fromkeys(row["case"] for row in rows):
        lines += [
            f"## {title}\n",
            "| provider | ms p20 / p50 / p80 | ratio | queries/s | TFLOP/s | differing |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in (row for row in rows if row["case"] == title):
            ms, ratio = row["ms"], row["ratio"]
            lines.append(
                f"| {row['provider']} | {ms['p20']:.4g} / {ms['p50']:.4g} / {ms['p80']:.4g} | {ratio['p50']:.2f} "
                f"({ratio['p20']:.2f} to {ratio['p80']:.2f}) | {row['queries_per_second']:.4g} | "
                f"{row['tflops']:.3g} | {row['positions_differing']} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
