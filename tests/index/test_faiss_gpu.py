"""Which GPUs are used, and what is said where there are none; the GPU itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.index import Index
from ance_fast.index.faiss_gpu import gpu_numbers, to_gpus
from ance_fast.index.faiss_index import FaissBackend
from ance_fast.index.selection import Selection


def gpu_build(gpus: int) -> Any:
    """What a GPU build of FAISS shows to the dispatch, recording the calls."""
    calls: list[tuple] = []
    return SimpleNamespace(
        calls=calls,
        get_num_gpus=lambda: gpus,
        StandardGpuResources=lambda: "resources",
        GpuMultipleClonerOptions=SimpleNamespace,
        index_cpu_to_gpu=lambda resources, number, index: calls.append((resources, number)),
        index_cpu_to_gpu_multiple_py=lambda resources, index, co, gpus: calls.append((resources, gpus, co.shard)),
    )


def test_devices_are_translated_to_gpu_numbers() -> None:
    assert gpu_numbers(gpu_build(2), ["auto"]) == [0]
    assert gpu_numbers(gpu_build(0), ["auto"]) == []
    assert gpu_numbers(gpu_build(2), ["cpu", "cpu"]) == []
    assert gpu_numbers(gpu_build(2), ["cuda:1", "cuda:0"]) == [1, 0]
    with pytest.raises(ConfigError, match="not on cpu, cuda:0"):
        gpu_numbers(gpu_build(2), ["cpu", "cuda:0"])
    with pytest.raises(ConfigError, match="sees no GPU"):
        gpu_numbers(gpu_build(0), ["cuda"])


def test_one_gpu_holds_the_index_and_several_a_part_each_with_resources_of_their_own() -> None:
    build = gpu_build(2)
    to_gpus(build, None, "IVF8,Flat", [1])
    to_gpus(build, None, "IVF8,Flat", [0, 1])
    assert build.calls == [("resources", 1), (["resources", "resources"], [0, 1], True)]


def test_cagra_without_cuvs_says_what_to_install(corpus: np.ndarray) -> None:
    for factory in ("CAGRA", "CAGRA32"):
        with pytest.raises(MissingDependencyError, match=r"faiss-cpu has none: pip uninstall .*ance_fast\[cuvs\]"):
            Index.build(corpus, factory=factory)
    assert Index.estimate("CAGRA32", 1000, 64).index == 1000 * 4 * (64 + 32)


def test_more_neighbours_than_a_gpu_index_returns_are_refused_with_the_ways_out(corpus: np.ndarray) -> None:
    index = faiss.index_factory(32, "SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(corpus)
    backend = FaissBackend("SQ8", index)
    backend.add(np.repeat(corpus, 2, axis=0))
    backend.on_gpu = True
    with pytest.raises(ConfigError, match="at most 2048 neighbours and this search needs 2100 .* Flat on a GPU"):
        backend.search(corpus[:1], 2000, Selection(2400, None, (np.array([0, 100]), np.arange(100))), {})
