"""The embedding ring beside plain copies of the same rows: one process, rounds in turn.

    python -m benchmarks.ring [--device cpu|cuda] [--rows 1024 4096 ...] [--dims 384 768] [--dtypes float32 float16]

Blocks of rows go from where they were computed into one matrix in memory that was used before. On a CPU:

- memcpy: one thread copies each block once (np.copyto). Half of the work, and nothing is handed over.
- two copies: one thread copies each block into a buffer and from there into the matrix.
- queue: two threads make these two copies and hand as many buffers as the ring has slots round with `queue.Queue`.
- ring, np.copyto: the same two copies by two threads through the ring.
- ring: `copy_from` and `copy_to`.

The fair rivals are two copies in CPU time and the queue in wall time; the ring is to reach 0.9 of either. memcpy in
wall time is for scale: with a core for each thread the ring can pass it, with one core for both it cannot.

On a GPU the rivals are `.cpu()`, and `non_blocking` copies into page-locked buffers of torch that a thread drains.
Before each block matrix products are queued, as an encoder's would be; "computing" is the time of these alone.

A round times every contestant once, in an order that alternates. Speeds are medians; ratios are taken within a round,
and their median and 20th to 80th percentile given. Every matrix is compared with the blocks before anything is timed.
"hand-over" is the wall time of a slot of one row. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast.artifacts import write_json
from ance_fast.encoding import EmbeddingRing
from ance_fast.inspection import info
from benchmarks.results import source

HANDED_OVER = 3000  # slots of one row
PRODUCTS = 4  # matrix products a block, on a GPU


@dataclass
class Stream:
    """`count` blocks [rows, dim], some few that go round, and the matrix [count * rows, dim] that they end up in."""

    blocks: list[torch.Tensor]
    count: int
    matrix: np.ndarray
    slots: int
    compute: Callable[[], object] = lambda: None  # queued before each block

    @classmethod
    def make(cls, rows: int, dim: int, dtype: str, device: str, slots: int, count: int) -> Stream:
        blocks = [torch.randn(rows, dim).to(getattr(torch, dtype)).to(device) for _ in range(3)]
        return cls(blocks, count, np.ones((count * rows, dim), dtype), slots)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        for i in range(self.count):
            self.compute()
            yield i, self.blocks[i % len(self.blocks)]

    @property
    def rows(self) -> int:
        return self.blocks[0].shape[0]

    def target(self, number: int) -> np.ndarray:
        return self.matrix[number * self.rows : (number + 1) * self.rows]

    def buffers(self) -> list[np.ndarray]:
        return [np.ones_like(self.target(0)) for _ in range(self.slots)]

    def ring(self) -> EmbeddingRing:
        rows, dim = self.blocks[0].shape
        pinned = self.blocks[0].is_cuda
        return EmbeddingRing(slots=self.slots, rows=rows, dim=dim, dtype=str(self.blocks[0].dtype), pinned=pinned)

    def holds(self) -> bool:
        """Whether the matrix is what it is to be; it is then emptied."""
        blocks = [block.cpu().numpy() for block in self.blocks]
        same = all(np.array_equal(self.target(i), blocks[i % len(blocks)]) for i in range(self.count))
        self.matrix[:] = 1
        return same


# A contestant allocates, and returns what is timed.
Contestant = Callable[[Stream], Callable[[], None]]


def memcpy(stream: Stream) -> Callable[[], None]:
    def run() -> None:
        for i, block in stream:
            np.copyto(stream.target(i), block.numpy())

    return run


def two_copies(stream: Stream) -> Callable[[], None]:
    buffers = itertools.cycle(stream.buffers())

    def run() -> None:
        for i, block in stream:
            buffer = next(buffers)
            np.copyto(buffer, block.numpy())
            np.copyto(stream.target(i), buffer)

    return run


def queued(stream: Stream) -> Callable[[], None]:
    free: queue.Queue[np.ndarray] = queue.Queue()
    ready: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue()
    for buffer in stream.buffers():
        free.put(buffer)

    def drain() -> None:
        while (item := ready.get()) is not None:
            np.copyto(stream.target(item[0]), item[1])
            free.put(item[1])

    def run() -> None:
        with thread(drain):
            for i, block in stream:
                buffer = free.get()
                np.copyto(buffer, block.numpy())
                ready.put((i, buffer))
            ready.put(None)

    return run


def ring_with_copyto(stream: Stream) -> Callable[[], None]:
    ring = stream.ring()

    def drain() -> None:
        with ring.drain() as slots:
            for slot in slots:
                np.copyto(stream.target(slot.tag), slot.array)

    def run() -> None:
        with thread(drain), ring:
            for i, block in stream:
                with ring.fill() as slot:
                    np.copyto(slot.array, block.numpy())
                    slot.publish(stream.rows, tag=i)

    return run


def ring(stream: Stream) -> Callable[[], None]:
    ring = stream.ring()

    def drain() -> None:
        with ring.drain() as slots:
            for slot in slots:
                slot.copy_to(stream.target(slot.tag))

    def run() -> None:
        with thread(drain), ring:
            for i, block in stream:
                with ring.fill() as slot:
                    slot.copy_from(block)
                    slot.publish(stream.rows, tag=i)

    return run


def computing(stream: Stream) -> Callable[[], None]:
    def run() -> None:
        for _ in stream:
            pass
        torch.cuda.synchronize()

    return run


def to_cpu(stream: Stream) -> Callable[[], None]:
    def run() -> None:
        for i, block in stream:
            np.copyto(stream.target(i), block.cpu().numpy())

    return run


def non_blocking(stream: Stream) -> Callable[[], None]:
    free: queue.Queue[torch.Tensor] = queue.Queue()
    ready: queue.Queue[tuple[int, torch.Tensor, torch.cuda.Event] | None] = queue.Queue()
    for buffer in stream.buffers():
        free.put(torch.from_numpy(buffer).pin_memory())

    def drain() -> None:
        while (item := ready.get()) is not None:
            item[2].synchronize()
            np.copyto(stream.target(item[0]), item[1].numpy())
            free.put(item[1])

    def run() -> None:
        with thread(drain):
            for i, block in stream:
                pinned, copied = free.get(), torch.cuda.Event()
                pinned.copy_(block, non_blocking=True)
                copied.record()
                ready.put((i, pinned, copied))
            ready.put(None)

    return run


HOST: dict[str, Contestant] = {
    "memcpy": memcpy,
    "two copies": two_copies,
    "queue": queued,
    "ring, np.copyto": ring_with_copyto,
    "ring": ring,
}
DEVICE: dict[str, Contestant] = {"computing": computing, ".cpu()": to_cpu, "non_blocking": non_blocking, "ring": ring}


@contextmanager
def thread(target: Callable[[], None]) -> Iterator[None]:
    worker = threading.Thread(target=target)
    worker.start()
    try:
        yield
    finally:
        worker.join()


def measure(stream: Stream, contestants: dict[str, Contestant], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of every contestant in every round, by the clock on the wall and by the process's own."""
    for name, contestant in contestants.items():
        contestant(stream)()
        if name != "computing" and not stream.holds():
            raise SystemExit(f"error: {name} brought other rows than it was given")
    times: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            run = contestants[name](stream)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"p20": float(low), "p50": float(middle), "p80": float(high)}


def rows_of(stream: Stream, times: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a contestant: GB/s of the matrix and, per round, each rival's time over its own."""
    rows = []
    for name, own in times.items():
        row: dict[str, Any] = {
            "shape": f"{stream.rows}x{stream.matrix.shape[1]} {stream.matrix.dtype}",
            "contestant": name,
            "blocks": stream.count,
            "gbps": {clock: stream.matrix.nbytes / 1e9 / statistics.median(t[clock] for t in own) for clock in own[0]},
            "ratios": {},
        }
        for rival, theirs in times.items():
            for clock in ("wall", "cpu"):
                ratios = [b[clock] / a[clock] for a, b in zip(own, theirs, strict=True)]
                row["ratios"][f"{rival}, {clock}"] = spread(ratios)
        rows.append(row)
    return rows


# What the table compares each contestant with; the JSON has all pairs.
SHOWN = {
    "cpu": ("memcpy, wall", "queue, wall", "two copies, cpu"),
    "cuda": ("computing, wall", ".cpu(), wall", "non_blocking, wall"),
}


def line(row: dict[str, Any], device: str) -> str:
    ratios = [row["ratios"][rival] for rival in SHOWN[device]]
    cells = [f"{r['p50']:.2f} ({r['p20']:.2f} to {r['p80']:.2f})" for r in ratios]
    return f"| {row['shape']} | {row['contestant']} | {row['gbps']['wall']:.2f} | {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(1)
    contestants = HOST if options.device == "cpu" else DEVICE
    rivals = " | x ".join(SHOWN[options.device])
    print(f"| blocks | contestant | GB/s | x {rivals} |\n| --- | --- |" + " ---: |" * 4)
    rows: list[dict[str, Any]] = []
    for dtype, dim, size in itertools.product(options.dtypes, options.dims, options.rows):
        count = max(4, round(options.megabytes * 1e6 / (size * dim * np.dtype(dtype).itemsize)))
        stream = Stream.make(size, dim, dtype, options.device, options.slots, count)
        if options.device == "cuda":
            left = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
            stream.compute = lambda left=left: [left @ left for _ in range(PRODUCTS)]  # type: ignore[misc]
        measured = rows_of(stream, measure(stream, contestants, options.rounds))
        rows += measured
        print("\n".join(line(row, options.device) for row in measured), flush=True)
    single = Stream.make(1, 8, "float32", "cpu", options.slots, HANDED_OVER)
    times = measure(single, {"queue": queued, "ring": ring}, options.rounds)
    hand_over = {name: 1e6 / HANDED_OVER * statistics.median(t["wall"] for t in taken) for name, taken in times.items()}
    print("\nhand-over: " + ", ".join(f"{name} {value:.1f} µs a slot" for name, value in hand_over.items()))
    result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": ["python", "-m", "benchmarks.ring", *(sys.argv[1:] if argv is None else argv)],
        "source": source(),
        "system": info(),
        "memory": single.ring().memory,
        "hand_over_us": hand_over,
        "rows": rows,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "ring.json", result)
    print(json.dumps(result))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.ring", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="rows of a block")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--dtypes", choices=["float32", "float16"], nargs="+", default=["float32", "float16"])
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--megabytes", type=float, default=300, help="of the matrix; at least four blocks go into it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="folder that receives ring.json")
    options = parser.parse_args(arguments)
    if min(*options.rows, *options.dims, options.slots, options.rounds) < 1 or options.megabytes <= 0:
        parser.error("--rows, --dims, --slots, --rounds and --megabytes must be positive")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return options


if __name__ == "__main__":
    main()
