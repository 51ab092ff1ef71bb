"""The index suite on a GPU: an index that is fed while vectors are computed, and exact search where they lie.

    python -m benchmarks.run --suite index --device cuda --out DIR [--shapes small|full] [--rounds N]

Feeding takes blocks of float32 vectors, computed on the GPU, into an index on the same GPU by way of the host, as an
encoder does that writes them to disk as well:

- faiss, .cpu(): one thread copies each block to pageable memory and calls `GpuIndexFlat.add`.
- faiss, blocks at hand: `GpuIndexFlat.add` of pageable blocks that were on the host before: half the work, for scale.
- faiss, ring: a producer's thread fills page-locked slots, a consumer's calls `GpuIndexFlat.add` and waits for it.
- ours, .cpu(): one thread copies each block to pageable memory and writes it to an `IndexSink`.
- ours, ring: a producer's thread fills page-locked slots, a consumer's writes them to an `IndexSink`.

Wall time, until the GPU is done; making the index counts, page-locking the ring does not. Before anything is timed,
every index is read back and compared with the blocks, bit by bit.

Searching is `topk_inner_product` over the matrix on the GPU beside FAISS' `knn_gpu` and torch's mm and topk over the
same, in float32, float16 and bfloat16: device time, and checked against float64 as `benchmarks.topk` does.

Rounds alternate; ratios are time of the first contestant / time, taken within a round: above 1 is faster. What FAISS as
installed cannot do is listed with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ance_fast.encoding import EmbeddingRing
from ance_fast.encoding.pipeline import SLOTS, WINDOW_ROWS
from ance_fast.index.faiss_library import faiss_reason
from ance_fast.index.sink import IndexSink
from benchmarks import topk
from benchmarks.ops.measure import Clock, CudaClock
from benchmarks.results import Row

SHAPES = {"small": (8, 384), "full": (64, 384)}  # blocks of an encoder's window on a GPU, and their width
QUERIES = (1, 32, 1024)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KNN = "faiss knn_gpu"


@dataclass(frozen=True)
class Feed:
    """`count` blocks [rows, dim], some few that go round."""

    blocks: list[Tensor]
    count: int

    @classmethod
    def make(cls, rows: int, dim: int, count: int, device: str) -> Feed:
        draw = torch.Generator().manual_seed(0)
        return cls([torch.randn(rows, dim, generator=draw).to(device) for _ in range(3)], count)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for number in range(self.count):
            yield number * self.rows, self.blocks[number % len(self.blocks)]

    @property
    def rows(self) -> int:
        return self.blocks[0].shape[0]

    @property
    def dim(self) -> int:
        return self.blocks[0].shape[1]

    @cached_property
    def host(self) -> list[np.ndarray]:
        """The blocks in pageable memory."""
        return [block.cpu().numpy() for block in self.blocks]

    @cached_property
    def ids(self) -> np.ndarray:
        return np.arange(self.count * self.rows).astype(str)

    def is_held(self, rows: np.ndarray) -> bool:
        """Whether `rows` are all that was fed, in order."""
        parts = np.split(rows, range(self.rows, len(rows), self.rows)) if len(rows) == len(self.ids) else []
        return bool(parts) and all(np.array_equal(p, self.host[i % len(self.host)]) for i, p in enumerate(parts))


@dataclass(frozen=True)
class Target:
    """An index that is being filled."""

    add: Callable[[int, np.ndarray], object]  # the first row's number, and rows of the host
    rows: Callable[[], np.ndarray]  # what it holds
    settle: Callable[[], object] = lambda: None  # until then it may still read what was added


# A way to feed allocates what it hands blocks over in, and returns what is timed: that makes the index and fills it.
Way = Callable[[Feed, Callable[[Feed], Target]], Callable[[], Target]]


def copied_to_host(feed: Feed, target: Callable[[Feed], Target]) -> Callable[[], Target]:
    def run() -> Target:
        index = target(feed)
        for first, block in feed:
            index.add(first, block.cpu().numpy())
        return index

    return run


def at_hand(feed: Feed, target: Callable[[Feed], Target]) -> Callable[[], Target]:
    host = feed.host

    def run() -> Target:
        index = target(feed)
        for number in range(feed.count):
            index.add(number * feed.rows, host[number % len(host)])
        return index

    return run


def through_ring(feed: Feed, target: Callable[[Feed], Target]) -> Callable[[], Target]:
    ring = EmbeddingRing(slots=SLOTS, rows=feed.rows, dim=feed.dim, pinned=feed.blocks[0].is_cuda)

    def run() -> Target:
        index = target(feed)

        def drain() -> None:
            with ring.drain() as slots:
                for slot in slots:
                    index.add(slot.tag, slot.array)
                    index.settle()

        with ThreadPoolExecutor(1) as pool:
            with ring:
                drained = pool.submit(drain)
                for first, block in feed:
                    with ring.fill() as slot:
                        slot.copy_from(block)
                        slot.publish(feed.rows, tag=first)
            drained.result()
        return index

    return run


def faiss_target(faiss: Any, resources: Any, feed: Feed) -> Target:
    index = faiss.GpuIndexFlatIP(resources, feed.dim)
    # FAISS queues its copies from page-locked memory and returns.
    settle = resources.syncDefaultStreamCurrentDevice
    return Target(lambda _, rows: index.add(rows), lambda: index.reconstruct_n(0, index.ntotal), settle)


def sink_target(device: str, feed: Feed) -> Target:
    sink = IndexSink(feed.ids, feed.dim, device=device)
    return Target(sink.write, lambda: sink.finish().reconstruct(np.arange(len(feed.ids))))


def faiss_with_gpu() -> tuple[Any, str]:
    """The module if it can use a GPU, else None and the reason."""
    if importlib.util.find_spec("faiss") is None:
        return None, "FAISS is not installed: pip install 'ance_fast[gpu]'"
    faiss = importlib.import_module("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        return None, f"{faiss_reason()}, without GPU support: pip uninstall it, then pip install 'ance_fast[gpu]'"
    if faiss.get_num_gpus() < 1:
        return None, f"{faiss_reason()}, and sees no GPU"
    return faiss, ""


def not_run(op: str, case: str, provider: str, reason: str) -> Row:
    return {"op": op, "case": case, "provider": provider, "status": "not run", "reason": reason}


def feeding(feed: Feed, device: str, rounds: int) -> list[Row]:
    """Every way to feed into every index; the first of those that ran is what ratios refer to."""
    faiss, reason = faiss_with_gpu()
    case = f"{feed.count} blocks of {feed.rows} x {feed.dim}, float32, {device}"
    ways: dict[str, tuple[Way, Callable[[Feed], Target]]] = {}
    rows: list[Row] = []
    plans = {"faiss, .cpu()": copied_to_host, "faiss, blocks at hand": at_hand, "faiss, ring": through_ring}
    if faiss is None:
        rows += [not_run("feed", case, name, reason) for name in plans]
    else:
        gpu_flat = partial(faiss_target, faiss, faiss.StandardGpuResources())
        ways |= {name: (way, gpu_flat) for name, way in plans.items()}
    ours = partial(sink_target, device)
    ways |= {"ours, .cpu()": (copied_to_host, ours), "ours, ring": (through_ring, ours)}

    for name, (way, target) in ways.items():
        if not feed.is_held(way(feed, target)().rows()):
            raise SystemExit(f"error: {case}: the index of {name!r} does not hold the rows it was fed")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            way, target = ways[name]
            seconds[name].append(wall_time(way(feed, target), device))
    base = seconds[next(iter(ways))]
    for name, times in seconds.items():
        rows.append(
            {
                "op": "feed",
                "case": case,
                "provider": name,
                "status": "ok",
                "clock": "wall time",
                "rounds": rounds,
                "ms": topk.spread([1e3 * t for t in times]),
                "ratio": topk.spread([first / t for first, t in zip(base, times, strict=True)]),
                "vectors_per_second": len(feed.ids) / statistics.median(times),
            }
        )
    return rows


def wall_time(run: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    made = run()
    wait()
    seconds = time.perf_counter() - started
    del made  # so late, since taking an index down is not measured
    return seconds


def searching(case: topk.Case, rounds: int, clock: Clock) -> list[Row]:
    """Exact search by every contestant of `benchmarks.topk`; FAISS where it has a GPU part that takes the dtype."""
    found = topk.contestants(case, threads=1)
    _, reason = faiss_with_gpu()
    if not reason:
        try:
            found[KNN]()
        except (TypeError, AttributeError) as error:  # bfloat16 came later than knn_gpu
            reason = f"{faiss_reason()}, whose knn_gpu does not take {case.vectors.dtype}: {error}"
    rows = [not_run("search", case.title, KNN, reason)] if reason else []
    if reason:
        found.pop(KNN, None)
    return rows + [row | {"op": "search", "status": "ok"} for row in topk.run_case(case, found, rounds, clock)]


def table(rows: list[Row]) -> str:
    """Of one case, for people."""
    unit = "vectors" if rows[0]["op"] == "feed" else "queries"
    lines = [
        f"\n{rows[0]['op']}: {rows[0]['case']}\n",
        f"| contestant | ms p20 / p50 / p80 | ratio | {unit}/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in (row for row in rows if row["status"] == "ok"):
        ms, ratio = row["ms"], row["ratio"]
        lines.append(
            f"| {row['provider']} | {ms['p20']:.4g} / {ms['p50']:.4g} / {ms['p80']:.4g} | "
            f"{ratio['p50']:.2f} ({ratio['p20']:.2f} to {ratio['p80']:.2f}) | {row[f'{unit}_per_second']:.4g} |"
        )
    return "\n".join(lines + [f"- {r['provider']}: {r['status']}: {r['reason']}" for r in rows if r["status"] != "ok"])


def measure(shapes: str, k: int, rounds: int) -> list[Row]:
    """All rows; each case is printed as soon as it is measured."""
    count, dim = SHAPES[shapes]
    block = WINDOW_ROWS["cuda"]
    rows = feeding(Feed.make(block, dim, count, "cuda"), "cuda", rounds)
    print(table(rows), flush=True)
    clock = CudaClock()
    for queries in QUERIES:
        for dtype in DTYPES:
            found = searching(topk.make_case(count * block, dim, queries, k, dtype, "cuda"), rounds, clock)
            print(table(found), flush=True)
            rows += found
    return rows
