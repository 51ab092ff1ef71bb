"""How much memory and disk an index takes, told before it is built, and how much there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_fast.errors import ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.faiss_library import import_faiss
from ance_fast.index.vectors import BLOCK_ROWS

# A vector's number in an inverted list; its offset and level in a graph, and the lock it has while that is built.
LIST_ENTRY_BYTES = 8
NODE_BYTES = 12
LOCK_BYTES = 12
# Inverted lists double as they grow, and some of the room ahead is memory that was used before (measured: 1.06-1.36).
LIST_SLACK = 1.2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the index without its document ids: held when built, at most while building, and on disk when saved."""

    index: int
    build: int
    disk: int

    def __str__(self) -> str:
        return f"{gib(self.index)} of memory, {gib(self.build)} while it is built, {gib(self.disk)} on disk"


def estimate_memory(
    factory: str, count: int, dim: int, *, dtype: str = "float32", train_size: int | None = None
) -> MemoryEstimate:
    """The estimate for `count` vectors of `dim` numbers, from the layout of the FAISS index `factory` makes.

    dtype: of the vectors Flat stores.

    Raises `ConfigError` for a factory FAISS does not know, `MissingDependencyError` for one other than Flat without it.
    """
    block = 4 * dim * min(count, BLOCK_ROWS)
    if factories.is_flat(factory):
        held = count * dim * (2 if dtype == "float16" else 4)
        return MemoryEstimate(held, held + block, held)
    faiss = import_faiss(factory)
    degree = factories.cagra_degree(factory)
    if degree is not None:
        held = count * 4 * (dim + degree)
        return MemoryEstimate(held, held + count * 4 * dim, held)
    index = factories.create(faiss, factory, dim, 0)
    stored = count * bytes_per_vector(faiss, index) + _centroid_bytes(faiss, index)
    held = round(LIST_SLACK * stored) if factories.lists(faiss, index) else stored
    growing = LOCK_BYTES * count if any(isinstance(x, faiss.IndexHNSW) for x in factories.layers(faiss, index)) else 0
    trained = 0
    if not index.is_trained:
        sample = min(count, train_size or factories.training_size(faiss, index))
        # The sample, and a copy while it is rotated, shuffled or encoded.
        trained = 2 * 4 * dim * sample
    return MemoryEstimate(held, max(trained, held + growing + 2 * block), stored)


def bytes_per_vector(faiss: Any, index: Any) -> int:
    """Bytes an (empty) FAISS index will hold for a vector, all its layers together."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return bytes_per_vector(faiss, index.index)
    if isinstance(index, faiss.IndexRefine):
        return bytes_per_vector(faiss, index.base_index) + bytes_per_vector(faiss, index.refine_index)
    if isinstance(index, faiss.IndexIVF):
        return int(index.code_size) + LIST_ENTRY_BYTES
    if isinstance(index, faiss.IndexHNSW):
        neighbours = index.hnsw.nb_neighbors(0)
        upper = index.hnsw.nb_neighbors(1)
        # A vector is on 1 / (upper - 1) further levels on average.
        links = 4 * (neighbours + upper / max(1, upper - 1))
        return bytes_per_vector(faiss, index.storage) + round(links) + NODE_BYTES
    if isinstance(index, faiss.IndexNSG):
        return bytes_per_vector(faiss, index.storage) + 4 * int(index.nsg.R)
    return int(getattr(index, "code_size", 4 * index.d))


def check_memory(estimate: MemoryEstimate, factory: str, count: int, dim: int, devices: Sequence[str]) -> None:
    """Raises `ConfigError` if building takes more memory than there is on the machine (or its GPUs, all together)."""
    available = available_memory(devices)
    if available is not None and estimate.build > available:
        place = "the GPUs have" if any(name.startswith("cuda") for name in devices) else "the machine has"
        raise ConfigError(
            f"{factory} over {count:,} vectors of {dim} dimensions takes about {estimate}; {place} {gib(available)} "
            "available. Index.over searches embeddings where they are (--on-disk), dtype='float16' or a quantised "
            "index (IVF4096,PQ64) takes less; check_memory=False builds it all the same"
        )


def available_memory(devices: Sequence[str] = ("cpu",)) -> int | None:
    """Bytes that can still be allocated, None if the system does not say; of GPUs the free memory, added up."""
    gpus = {name for name in devices if name.startswith("cuda")}
    if gpus:
        import torch

        return sum(torch.cuda.mem_get_info(name)[0] for name in gpus) if torch.cuda.is_available() else None
    known = [value for value in (_of_machine(), _of_group()) if value is not None]
    return min(known, default=None)


def gib(count: int) -> str:
    """`count` bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _centroid_bytes(faiss: Any, index: Any) -> int:
    """Centroids of the inverted lists."""
    for layer in factories.layers(faiss, index):
        if isinstance(layer, faiss.IndexIVF):
            return int(layer.nlist) * bytes_per_vector(faiss, layer.quantizer)
    return 0


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        return None
    return None


def _of_group() -> int | None:
    """What the control group (container) this process is in leaves, file cache not counted."""
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most, taken = (Path(folder, name).read_text().strip() for name in (limit, used))
            counts = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most != "max":
            return max(0, int(most) - int(taken) + int(counts.get("inactive_file", 0)))
    return None
