"""Clocks, the machine's own ceilings, and peak memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Call = Callable[[], object]
CHILD_SECONDS = 600.0
M_MMAP_THRESHOLD = -3  # of malloc.h
MAPPED_BYTES = 2**16
# Several times the largest L2 cache of a GPU: writing it evicts whatever the last sample left there.
FLUSHES = 8  # 2 GB: more than half a millisecond at 3 to 4 TB/s
FLUSH_BYTES = 256 * 2**20


class Clock(Protocol):
    """`sample` gives (seconds that count, wall seconds), each per call. `name` says what counts."""

    name: str

    def sample(self, call: Call, repeats: int) -> tuple[float, float]: ...


class CpuClock:
    """With one thread the process's own CPU time, which the machine's other work does not lengthen much; with more
    threads CPU time would add them up, so wall time counts."""

    def __init__(self, threads: int) -> None:
        self.name = "process time" if threads == 1 else "wall time"
        self._own = threads == 1

    def sample(self, call: Call, repeats: int) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return (cpu if self._own else wall) / repeats, wall / repeats


class CudaClock:
    """Device time between two events, the L2 cache flushed before each call. The flush is repeated: it takes longer
    than queueing a forward and a backward pass, so that the host's own time stays out of it."""

    name = "cuda events"

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def sample(self, call: Call, repeats: int) -> tuple[float, float]:
        total = 0.0
        wall = time.perf_counter()
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(FLUSHES):
                self._flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end) / 1e3
        return total / repeats, (time.perf_counter() - wall) / repeats


class CudaHostClock:
    """What a call costs the host: calls are queued without waiting for the device."""

    name = "host time"

    def sample(self, call: Call, repeats: int) -> tuple[float, float]:
        torch.cuda.synchronize()
        wall = time.perf_counter()
        for _ in range(repeats):
            call()
        wall = time.perf_counter() - wall
        torch.cuda.synchronize()
        return wall / repeats, wall / repeats


def ceilings(device: str, dtypes: list[torch.dtype], clock: Clock, small: bool) -> dict[str, dict[str, float]]:
    """Best of some samples: `copy` in bytes read and written a second, and a square GEMM per dtype in FLOP/s.

    Random data: zeros make a GPU draw less power and run faster.
    """
    size = 2**23 if small else 2**28 if device == "cpu" else 2**30
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    result = {"copy": {"bytes": float(size), "per_second": 2 * size / _fastest(lambda: target.copy_(source), clock)}}
    side = 256 if small else 2048 if device == "cpu" else 8192
    for dtype in dtypes:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = _fastest(_product(left, right), clock)
        result[str(dtype).removeprefix("torch.")] = {"side": float(side), "per_second": 2.0 * side**3 / seconds}
    return result


def _product(left: Tensor, right: Tensor) -> Call:
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _fastest(call: Call, clock: Clock) -> float:
    clock.sample(call, 1)
    return min(clock.sample(call, 1)[0] for _ in range(7))


def peak_bytes(call: Call, device: str) -> int | None:
    """Most memory held during `call` beyond what was held before it; None where the system does not tell."""
    return _cuda_peak(call) if device == "cuda" else cpu_peak(call)


def _cuda_peak(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(call: Call) -> int | None:
    """The kernel's own high-water mark of resident memory, in a forked child: nothing is sampled, no allocator trusted.

    A child, so that the mark is of this call alone and the parent's timings meet the allocator as they left it. In the
    child every block of some size is a mapping of its own, in a thread whose heap holds no free ones: resident memory
    is then what is held at once, not what malloc keeps for later. The call is made once before measuring, which loads
    code pages and one-time buffers; writing 5 to /proc/self/clear_refs sets VmHWM to the present size.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_in_child, args=(call, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(CHILD_SECONDS) else None
    except EOFError:  # the child died, or may not reset the mark here
        return None
    finally:
        child.kill()
        child.join()
        receiver.close()


def _measure_in_child(call: Call, sender: Connection) -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    worker = threading.Thread(target=_measure_in_thread, args=(call, sender))
    worker.start()
    worker.join()


def _measure_in_thread(call: Call, sender: Connection) -> None:
    torch.set_num_threads(1)  # the parent's other threads do not exist here
    call()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _high_water_mark()
    call()
    sender.send(_high_water_mark() - before)


def _high_water_mark() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
