"""FAISS indexes on GPUs: one, or several that each hold a part of the vectors; and CAGRA graphs. Experimental: not yet
run on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.index.factory import faiss_message
from ance_fast.index.faiss_library import faiss_kind

# FAISS' limit for the neighbours of one query on a GPU.
GPU_MAX_K = 2048


def gpu_numbers(faiss: Any, devices: Sequence[str]) -> list[int]:
    """The GPUs `devices` name, none for the CPU. Raises `ConfigError` where FAISS sees no GPU, or for a mixture."""
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if set(devices) == {"cpu"} or (tuple(devices) == ("auto",) and not gpus):
        return []
    if "cpu" in devices:
        raise ConfigError(f"FAISS holds an index on the CPU or on GPUs, not on {', '.join(devices)}")
    if not gpus:
        raise ConfigError(
            f"device {', '.join(map(repr, devices))} asked for, but {faiss_kind()} sees no GPU; use device='cpu' or "
            "pip install 'ance_fast[gpu]' in place of faiss-cpu"
        )
    return [int(name.partition(":")[2] or 0) for name in devices]


def to_gpus(faiss: Any, index: Any, factory: str, numbers: Sequence[int]) -> Any:
    """`index` on the GPUs `numbers`; its vectors are divided among several.

    Raises `ConfigError` if FAISS has no GPU form of it.
    """
    # One set of resources a GPU: they must not be used by several threads at once.
    resources = [faiss.StandardGpuResources() for _ in numbers]
    try:
        if len(numbers) == 1:
            return faiss.index_cpu_to_gpu(resources[0], numbers[0], index)
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        return faiss.index_cpu_to_gpu_multiple_py(resources, index, co=options, gpus=list(numbers))
    except RuntimeError as error:
        raise ConfigError(
            f"{factory} does not run on GPU {', '.join(map(str, numbers))}: {faiss_message(error)}; use device='cpu'"
        ) from error


def cagra(faiss: Any, vectors: np.ndarray, degree: int, devices: Sequence[str]) -> Any:
    """The CAGRA graph of float32 `vectors` [n, dim], which cuVS builds from all of them at once.

    Raises:
        MissingDependencyError: this FAISS was built without cuVS.
        ConfigError: no GPU, or more than one.
    """
    if not hasattr(faiss, "GpuIndexCagra"):
        raise MissingDependencyError(
            f"CAGRA needs FAISS with cuVS on an NVIDIA GPU, {faiss_kind()} has none: pip uninstall {faiss_kind()}, "
            "then pip install 'ance_fast[cuvs]'; HNSW32 is a graph for the CPU"
        )
    numbers = gpu_numbers(faiss, devices)
    if len(numbers) != 1:
        raise ConfigError(f"CAGRA is built on one GPU, not on {', '.join(devices)}; use device='cuda'")
    config = faiss.GpuIndexCagraConfig()
    config.device = numbers[0]
    config.graph_degree = degree
    config.intermediate_graph_degree = 2 * degree
    index = faiss.GpuIndexCagra(
        faiss.StandardGpuResources(), vectors.shape[1], faiss.METRIC_INNER_PRODUCT, config
    )  # fmt: skip
    index.train(vectors)
    return index
