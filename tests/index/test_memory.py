from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.index import Index, memory

# Each index is built in a process of its own, forked before any library has started threads.
MEASURE = """
import ctypes, gc, json, os, sys
import faiss, numpy as np, torch
from ance_fast.index import Index

class Shards:
    def __init__(self, rows, dim):
        self.rows, self.dim, self.ids = rows, dim, [str(row) for row in range(rows)]

    def __iter__(self):
        for start in range(0, self.rows, 4096):
            shape = (min(4096, self.rows - start), self.dim)
            yield np.random.default_rng(start).standard_normal(shape, dtype=np.float32)

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

for factory, rows, dim in json.loads(sys.argv[1]):
    if os.fork() == 0:
        shards = Shards(rows, dim)
        warm = Index.build(Shards(2500, dim), factory=factory, train_size=2500)
        before = resident()
        index = Index.build(shards, factory=factory, train_size=2500)
        print(json.dumps([factory, resident() - before - index.ids.nbytes]), flush=True)
        os._exit(0)
    os.wait()
"""

# Product quantisers are left to the size of their files: to grow by much takes them minutes.
KINDS = [("Flat", 40_000, 256), ("SQ8", 100_000, 256), ("IVF32,Flat", 40_000, 256), ("HNSW16", 6_000, 512)]


@pytest.mark.timeout(240)
def test_the_estimate_is_what_a_process_grows_by_when_it_builds_the_index() -> None:
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(KINDS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = dict(json.loads(line) for line in found.stdout.splitlines())
    for factory, rows, dim in KINDS:
        estimate = Index.estimate(factory, rows, dim, train_size=2500)
        assert 0.75 < grown[factory] / estimate.index < 1.25, (factory, grown[factory], estimate)
        assert estimate.build >= estimate.index


@pytest.mark.parametrize(
    "factory",
    ["Flat", "SQ8", "PQ16", "HNSW32", "IVF16,Flat", "IVF16,PQ16", "IVF16,SQ8", "IVF16_HNSW8,Flat", "HNSW16,RFlat",
     "IVF16,PQ16,RFlat"],
)  # fmt: skip
def test_the_file_has_the_size_that_was_estimated(factory: str, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    Index.build(vectors, factory=factory).save(tmp_path / "index")
    written = sum(file.stat().st_size for file in (tmp_path / "index").iterdir() if file.suffix in (".npy", ".faiss"))
    codebooks = 100_000  # of product quantisers and rotations: the same whatever the corpus, so not estimated
    assert written == pytest.approx(Index.estimate(factory, 2000, 64).disk, rel=0.05, abs=codebooks)


def test_half_precision_takes_half_and_training_takes_its_sample() -> None:
    assert 2 * Index.estimate("Flat", 1000, 8, dtype="float16").index == Index.estimate("Flat", 1000, 8).index
    small, large = (Index.estimate("IVF1024,PQ8", 10**7, 64, train_size=size).build for size in (10**5, 10**7))
    assert large - small > 4 * 64 * 9 * 10**6


def test_what_does_not_fit_is_refused_with_both_numbers_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda devices: 2**20)
    vectors = np.ones((40_000, 8), np.float32)
    with pytest.raises(ConfigError, match=r"Flat over 40,000 .* 1.2 MiB of memory, 2.4 MiB .* has 1.0 MiB available"):
        Index.build(vectors)
    assert len(Index.build(vectors, check_memory=False)) == 40_000


def test_the_estimate_is_logged_before_anything_is_built(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ance_fast"), pytest.raises(ConfigError, match="NaN"):
        Index.build(np.full((4, 8), np.nan, np.float32))
    assert caplog.messages == ["Flat over 4 x 8: about 0.0 MiB of memory, 0.0 MiB while it is built, 0.0 MiB on disk"]


def test_the_memory_of_this_machine_is_found() -> None:
    available = memory.available_memory()
    assert available is None or 2**20 < available < 2**50


def test_a_container_with_less_memory_than_its_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n",
        "/sys/fs/cgroup/memory.max": "4096000\n",
        "/sys/fs/cgroup/memory.current": "3000000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 1000000\n",
    }

    def read(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert memory.available_memory() == 4096000 - 3000000 + 1000000
    files["/sys/fs/cgroup/memory.max"] = "max"
    assert memory.available_memory() == 8000 * 1024


@pytest.mark.usefixtures("without_faiss")
def test_without_faiss_only_flat_is_estimated() -> None:
    assert Index.estimate("Flat", 10, 4).index == 160
    with pytest.raises(MissingDependencyError, match=r"ance_fast\[cpu\]"):
        Index.estimate("HNSW32", 10, 4)


def test_a_factory_nobody_knows_has_no_estimate() -> None:
    with pytest.raises(ConfigError, match="banana"):
        Index.estimate("banana", 10, 4)
