"""The memory that slots lie in, and what a ring says of it and of the copies of a GPU."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ance_fast import _C
from ance_fast.encoding import EmbeddingRing
from ance_fast.encoding import ring as module
from ance_fast.errors import ConfigError

pytestmark = pytest.mark.timeout(60)


def build(**changes: object) -> SimpleNamespace:
    info = {"cuda": True, "cuda_device_count": 0, "cuda_error": "no driver", **changes}
    return SimpleNamespace(build_info=lambda: info)


WITHOUT = [
    ({"cuda": False}, "ance_fast was built without its CUDA part"),
    ({}, "there is no GPU: no driver"),
    ({"cuda_error": ""}, "there is no GPU: CUDA counts none"),
]


@pytest.mark.parametrize(("changes", "reason"), WITHOUT)
def test_memory_is_page_locked_where_there_is_a_gpu_and_says_why_not(monkeypatch, changes, reason):
    monkeypatch.setattr("ance_fast._C", build(**changes))
    assert module._memory_kind("auto")[0] is False
    assert reason in module._memory_kind("auto")[1]
    with pytest.raises(ConfigError, match=f"the ring's memory cannot be page-locked: {reason}"):
        module._memory_kind(True)
    monkeypatch.setattr("ance_fast._C", build(cuda_device_count=1))
    assert module._memory_kind("auto") == module._memory_kind(True) == (True, "page-locked")


def test_memory_that_shall_not_be_page_locked_is_not_asked_about(monkeypatch):
    monkeypatch.setattr("ance_fast._C", None)
    assert module._memory_kind(False) == (False, "pageable, as asked for")


def test_a_ring_tells_what_memory_it_has():
    ring = EmbeddingRing(slots=1, rows=1, dim=1)
    assert ring.pinned == bool(_C.build_info()["cuda"] and _C.build_info()["cuda_device_count"])
    assert ring.memory.startswith("page-locked" if ring.pinned else "pageable: ")
    with pytest.raises(ConfigError, match="pinned is 'yes'; it must be True, False or 'auto'"):
        EmbeddingRing(slots=1, rows=1, dim=1, pinned="yes")


@pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU is what is tested")
def test_pages_that_cannot_be_locked_are_a_config_error():
    if not _C.EmbeddingRing.copies_from_cuda:
        pytest.skip("no nvcc: built without CUDA")
    with pytest.raises(RuntimeError, match="cudaHostRegister: "):
        _C.EmbeddingRing(slots=1, rows=1, dim=1, dtype=np.dtype(np.float32), consumers=1, page_locked=True)


def test_all_pages_are_there_before_the_first_slot_is_filled():
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    ring = EmbeddingRing(slots=1, rows=1000, dim=10_000, pinned=False)
    with ring.fill() as slot:
        array = slot.array
        before = faults()
        array.fill(1.0)
        assert faults() - before <= 2  # of 10,000 small pages, or 20 huge ones
    assert ring.states == ["free"]


def test_rows_of_the_host_cost_a_device_nothing():
    ring = EmbeddingRing(slots=1, rows=2, dim=3, pinned=False)
    with ring.fill() as slot:
        slot.copy_from(torch.ones(2, 3))
        slot.publish(2, 0)
    ring.close()
    assert [slot.rows for slot in ring.drain()] == [2]
    assert ring.copy_seconds == 0
