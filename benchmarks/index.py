"""`Index` beside raw FAISS calls: building, adding, and searching, with the recall of each approximate index.

    python -m benchmarks.run --suite index --out DIR [--shapes small|full] [--threads 1] [--rounds N] [--device cuda]

What is measured on a GPU is said in `benchmarks.index_cuda`. On a CPU:

Vectors are clustered and normalised (64 a cluster), queries are other draws of the same clusters. Each round times both
sides once, in an order that alternates; seconds are CPU seconds of the process, ratios are taken within a round. Before
anything is timed the results are compared: ours must be FAISS' own, and Flat must agree with brute force.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast.artifacts import write_json
from ance_fast.index import Index, recall_at_k
from ance_fast.index import factory as factories
from ance_fast.index.faiss_bulk import prefers_bulk
from ance_fast.index.faiss_index import default_ef_search, default_nprobe
from benchmarks import index_cuda
from benchmarks.results import describe_system
from benchmarks.topk import faiss_version

SHAPES = {"small": (20_000, 64, 200), "full": (200_000, 384, 1000)}
APPROXIMATE = {"small": ("IVF64,Flat", "HNSW16", "IVF64,PQ16"), "full": ("IVF256,Flat", "HNSW32", "IVF256,PQ64")}
K = 100
BULK_QUERIES = 8192


def main(argv: list[str] | None = None) -> None:
    """Measure, write DIR/index.json, and print it as the last line."""
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    torch.set_num_threads(options.threads)
    measured = on_gpu(options) if options.device == "cuda" else on_cpu(options)
    system = describe_system(["--suite", "index", *argv], options.threads, {}) | {"faiss": faiss_version()}
    result = {"system": system, **measured}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "index.json", result)
    print(json.dumps(result))


def on_gpu(options: argparse.Namespace) -> dict[str, Any]:
    return {"k": K, "rows": index_cuda.measure(options.shapes, K, options.rounds)}


def on_cpu(options: argparse.Namespace) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(options.threads)
    count, dim, queries = SHAPES[options.shapes]
    corpus, asked = clustered(count, dim, queries)
    rows = [*flat(faiss, corpus, asked, options.rounds), *streamed(faiss, corpus, options.rounds)]
    for factory in APPROXIMATE[options.shapes]:
        rows += approximate(faiss, corpus, asked, factory, options.rounds)
    rows += bulk(faiss, corpus, APPROXIMATE[options.shapes][0], options.rounds)
    for row in rows:
        print(row, file=sys.stderr)
    return {"vectors": count, "dim": dim, "queries": queries, "k": K, "threads": options.threads, "rows": rows}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.index", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that receives index.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", choices=list(SHAPES), default="full")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return options


def clustered(count: int, dim: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(1, count // 64), dim), dtype=np.float32)

    def draw(rows: int) -> np.ndarray:
        vectors = 0.7 * generator.standard_normal((rows, dim), dtype=np.float32)
        vectors += centres[generator.integers(0, len(centres), rows)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    return draw(count), draw(queries)


def interleaved(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Least CPU seconds of both, and the median over the rounds of theirs / ours."""
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        order = [("ours", ours), ("theirs", theirs)]
        for name, call in order if number % 2 else order[::-1]:
            started = time.process_time()
            call()
            taken[name].append(max(time.process_time() - started, 1e-9))
    ratio = statistics.median(b / a for a, b in zip(taken["ours"], taken["theirs"], strict=True))
    return min(taken["ours"]), min(taken["theirs"]), ratio


def row(what: str, items: int, times: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    ours, theirs, ratio = times
    return {
        "what": what, "ours_per_s": items / ours, "faiss_per_s": items / theirs, "faiss_over_ours": ratio, **more
    }  # fmt: skip


def flat(faiss: Any, corpus: np.ndarray, asked: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    count, dim = corpus.shape
    index, raw = Index.build(corpus), faiss.IndexFlatIP(dim)
    raw.add(corpus)
    ours, (scores, _) = index.search(asked, K), raw.search(asked, K)
    assert np.allclose(ours.scores, scores, rtol=1e-5, atol=1e-6), "exact search differs from FAISS Flat"

    def add() -> None:
        faiss.IndexFlatIP(dim).add(corpus)

    return [
        row("build Flat", count, interleaved(lambda: Index.build(corpus), add, rounds)),
        row(
            "search Flat", len(asked),
            interleaved(lambda: index.search(asked, K), lambda: raw.search(asked, K), rounds),
        ),
        row(
            "search Flat, one query", 1,
            interleaved(lambda: index.search(asked[:1], K), lambda: raw.search(asked[:1], K), rounds),
        ),
    ]  # fmt: skip


def streamed(faiss: Any, corpus: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """Vectors that arrive in slices of 4,096: into room made beforehand, and into a FAISS index that grows."""

    class Slices:
        dim = corpus.shape[1]
        ids = np.arange(len(corpus)).astype(str)

        def __iter__(self) -> Any:
            return (corpus[start : start + 4096] for start in range(0, len(corpus), 4096))

    def grow() -> None:
        index = faiss.IndexFlatIP(corpus.shape[1])
        for part in Slices():
            index.add(part)

    source = Slices()
    return [row("build Flat from slices", len(corpus), interleaved(lambda: Index.build(source), grow, rounds))]


def approximate(
    faiss: Any, corpus: np.ndarray, asked: np.ndarray, factory: str, rounds: int
) -> list[dict[str, Any]]:  # fmt: skip
    """Ours and FAISS' own calls on the same index, at the same parameters and so at the same recall."""
    started = time.process_time()
    index = Index.build(corpus, factory=factory)
    built = time.process_time() - started
    raw = index._backend._index  # type: ignore[attr-defined]
    nlist = factories.lists(faiss, raw)
    if nlist:
        params = faiss.SearchParametersIVF(nprobe=default_nprobe(nlist))
    else:
        params = faiss.SearchParametersHNSW(efSearch=default_ef_search(K, 1.0, len(corpus)))
    found = index.search(asked, K)
    assert np.array_equal(found.scores, np.sort(raw.search(asked, K, params=params)[0])[:, ::-1]), factory
    times = interleaved(lambda: index.search(asked, K), lambda: raw.search(asked, K, params=params), rounds)
    recall = recall_at_k(found, Index.over(corpus, check=False).search(asked, K))
    return [row(f"search {factory}", len(asked), times, recall=recall, build_seconds=built)]


def bulk(faiss: Any, corpus: np.ndarray, factory: str, rounds: int) -> list[dict[str, Any]]:
    """Mining: as many queries as documents, searched list by list, against FAISS' search query by query."""
    index = Index.build(corpus, factory=factory)
    raw = index._backend._index  # type: ignore[attr-defined]
    params = faiss.SearchParametersIVF(nprobe=default_nprobe(factories.lists(faiss, raw)))
    asked = corpus[:BULK_QUERIES]
    chosen = prefers_bulk(raw, len(asked), K)
    same = recall_at_k(index.search(asked, K), raw.search(asked, K, params=params)[1])
    assert same > 0.999, f"list by list and query by query share {same}"
    times = interleaved(lambda: index.search(asked, K), lambda: raw.search(asked, K, params=params), min(rounds, 3))
    return [row(f"search {factory}, {len(asked)} queries", len(asked), times, same=same, list_by_list=chosen)]


if __name__ == "__main__":
    main()
