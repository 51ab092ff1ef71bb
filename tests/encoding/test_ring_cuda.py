"""The ring filled by a GPU."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from ance_fast import _C
from ance_fast.encoding import EmbeddingRing

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.timeout(120),
]


@pytest.fixture(autouse=True)
def cuda_part() -> None:
    assert _C.EmbeddingRing.copies_from_cuda, "on a machine with a GPU the extension must be built with CUDA"


def test_memory_is_page_locked_and_torch_sees_it():
    ring = EmbeddingRing(slots=2, rows=64, dim=48)
    assert (ring.pinned, ring.memory) == (True, "page-locked")
    with ring.fill() as slot:
        assert slot.tensor.is_pinned()
    assert not EmbeddingRing(slots=1, rows=1, dim=1, pinned=False).pinned


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("given", ["float32", "float16", "bfloat16"])
def test_rows_arrive_in_the_dtype_of_the_ring(dtype, given, pinned):
    ring = EmbeddingRing(slots=3, rows=100, dim=65, dtype=dtype, pinned=pinned)
    values = torch.randn(100, 65, device="cuda").to(getattr(torch, given))
    with ring.fill() as slot:
        slot.copy_from(values[:40], slice(0, 40))
        slot.copy_from(values[40:90].clone(), slice(40, 90))
        slot.tensor[90:] = values[90:].cpu()
        slot.publish(100, 0)
    ring.close()
    (result,) = [slot.tensor.clone() for slot in ring.drain()]
    assert torch.equal(result, values.to(getattr(torch, dtype)).cpu())


def test_strided_rows_are_copied():
    ring = EmbeddingRing(slots=1, rows=8, dim=6)
    values = torch.randn(6, 8, device="cuda")
    with ring.fill() as slot:
        slot.copy_from(values.T)
        slot.publish(8, 0)
    assert torch.equal(next(ring.drain()).tensor, values.T.cpu())


def test_publish_does_not_wait_and_consumers_do():
    ring = EmbeddingRing(slots=1, rows=256, dim=256)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        values = torch.zeros(256, 256, device="cuda")
        torch.cuda._sleep(int(4e8))  # some tenths of a second
        values.fill_(7)
        with ring.fill() as slot:
            slot.copy_from(values)
            slot.publish(256, 0)
        assert not stream.query(), "publishing waited for the GPU"
    slots = ring.drain(timeout=0.01)
    with pytest.raises(TimeoutError):
        next(slots)
    stream.synchronize()
    assert (next(slots).array == 7).all()


def test_copies_are_timed_without_what_they_wait_for():
    ring = EmbeddingRing(slots=2, rows=4096, dim=1024)
    values = torch.zeros(4096, 1024, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.cuda._sleep(int(4e8))  # some tenths of a second
    end.record()
    for tag in range(2):
        with ring.fill() as slot:
            slot.copy_from(values[:2048], slice(0, 2048))
            slot.copy_from(values[2048:], slice(2048, 4096))
            slot.publish(4096, tag)
    ring.close()
    assert ring.copy_seconds == 0
    assert [slot.tag for slot in ring.drain()] == [0, 1]
    # 34 MB: faster than any bus, and slower than a bus of 1 GB/s.
    assert 2 * values.nbytes / 1e12 < ring.copy_seconds < 2 * values.nbytes / 1e9
    assert ring.copy_seconds < begin.elapsed_time(end) / 1000


def test_the_memory_of_the_rows_is_not_handed_out_before_they_are_copied():
    """Each tensor is dropped at once and the next one written to whatever memory torch hands out."""
    ring = EmbeddingRing(slots=4, rows=512, dim=384, dtype="float16")
    wrong: list[int] = []

    def drain() -> None:
        with ring.drain(timeout=60) as slots:
            wrong.extend(slot.tag for slot in slots if not (slot.array == slot.tag).all())

    consumer = threading.Thread(target=drain)
    consumer.start()
    with ring:
        for tag in range(300):
            with ring.fill(timeout=60) as slot:
                slot.copy_from(torch.full((512, 384), tag, dtype=torch.float16, device="cuda"))
                slot.publish(512, tag)
    consumer.join()
    assert wrong == []


def test_producers_on_several_streams_fill_one_ring():
    ring = EmbeddingRing(slots=3, rows=64, dim=128)
    seen: list[int] = []

    def fill(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for tag in range(first, first + 100):
                with ring.fill(timeout=60) as slot:
                    slot.copy_from(torch.full((64, 128), float(tag), device="cuda"))
                    slot.publish(64, tag)

    def drain() -> None:
        with ring.drain(timeout=60) as slots:
            seen.extend(slot.tag for slot in slots if (slot.array == slot.tag).all())

    consumer = threading.Thread(target=drain)
    producers = [threading.Thread(target=fill, args=(1000 * p,)) for p in range(3)]
    for thread in (consumer, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    ring.close()
    consumer.join()
    assert sorted(seen) == [1000 * p + i for p in range(3) for i in range(100)]


def test_a_ring_dropped_with_copies_under_way_waits_for_them():
    for _ in range(5):
        ring = EmbeddingRing(slots=1, rows=1024, dim=1024)
        values = torch.ones(1024, 1024, device="cuda")
        torch.cuda._sleep(int(2e7))
        with ring.fill() as slot:
            slot.copy_from(values)
            slot.publish(1024, 0)
        ring.cancel()
        del ring, slot, values
        gc.collect()
    torch.cuda.synchronize()


def test_a_copy_that_cuda_refuses_fails_the_ring():
    ring = EmbeddingRing(slots=1, rows=4, dim=4)
    with pytest.raises(RuntimeError, match="cudaSetDevice: "), ring.fill() as slot:
        slot._ticket.copy_from_device(0, 0, 4, torch.cuda.device_count(), 0, None)
    with pytest.raises(RuntimeError, match="cudaSetDevice: "):
        next(ring.drain())
    assert ring.failed
    assert torch.ones(2, device="cuda").sum() == 2, "the refusal surfaced elsewhere"


def test_arrays_of_cupy_are_made_from_slots():
    cupy = pytest.importorskip("cupy", reason="no GPU array library (cupy)")
    ring = EmbeddingRing(slots=1, rows=16, dim=8, dtype="float16")
    values = torch.randn(16, 8, device="cuda", dtype=torch.float16)
    with ring.fill() as slot:
        slot.copy_from(torch.from_dlpack(cupy.from_dlpack(values)))
        slot.publish(16, 0)
    # Slots are memory of the host, so CuPy copies them to the device.
    on_device = cupy.asarray(next(ring.drain()).array)
    np.testing.assert_array_equal(cupy.asnumpy(on_device), values.cpu().numpy())
