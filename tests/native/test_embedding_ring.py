"""The embedding ring: who sees what in which order, who waits for whom, and how everybody hears of the end."""

from __future__ import annotations

import gc
import itertools
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ance_fast.encoding import EmbeddingRing, RingCancelled
from ance_fast.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc/embedding_ring.cpp", "tests/native/embedding_ring_stress.cpp")
pytestmark = pytest.mark.timeout(60)


@contextmanager
def threads(ring: EmbeddingRing, count: int = 8) -> Iterator[Callable[..., Future]]:
    """`start(function, *arguments)` in a thread of its own; whatever a test does, no thread outlives it."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool.submit
    except BaseException:
        ring.cancel("the test ended")
        raise
    finally:
        pool.shutdown()


def produce(ring: EmbeddingRing, tags: range) -> None:
    for tag in tags:
        with ring.fill(timeout=20) as slot:
            rows = 1 + tag % ring.rows
            slot.array[:rows] = tag
            slot.publish(rows, tag)


def consume(ring: EmbeddingRing, consumer: int = 0) -> list[int]:
    tags = []
    with ring.drain(consumer, timeout=20) as slots:
        for slot in slots:
            assert slot.array.shape == (1 + slot.tag % ring.rows, ring.dim)
            assert (slot.array == slot.tag).all()
            tags.append(slot.tag)
    return tags


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "what the test waits for does not happen"
        time.sleep(0.001)


def small(**changes: object) -> EmbeddingRing:
    return EmbeddingRing(**{"slots": 2, "rows": 4, "dim": 3, **changes})


@pytest.mark.parametrize(("producers", "consumers", "slots"), [(1, 1, 1), (1, 3, 2), (3, 1, 4), (3, 3, 2)])
def test_every_consumer_sees_every_slot_once_in_one_order(producers, consumers, slots):
    ring = small(slots=slots, consumers=consumers)
    ranges = [range(1000 * p, 1000 * p + 60) for p in range(producers)]
    with threads(ring) as start:
        seen = [start(consume, ring, consumer) for consumer in range(consumers)]
        with ring:
            for producer in [start(produce, ring, tags) for tags in ranges]:
                producer.result()
    orders = [future.result() for future in seen]
    assert all(order == orders[0] for order in orders)
    assert sorted(orders[0]) == sorted(itertools.chain(*ranges))
    for tags in ranges:
        assert [tag for tag in orders[0] if tag in tags] == list(tags)
    assert ring.states == ["free"] * slots


def test_threads_under_one_number_share_its_slots():
    ring = small()
    with threads(ring) as start, ring:
        seen = [start(consume, ring) for _ in range(3)]
        produce(ring, range(100))
        ring.close()
    orders = [future.result() for future in seen]
    assert all(order == sorted(order) for order in orders)
    assert sorted(itertools.chain(*orders)) == list(range(100))


def test_a_slot_is_free_filling_ready_and_draining_in_turn():
    ring = small(slots=1, consumers=2)
    states = [ring.states]
    with ring.fill() as slot:
        states.append(ring.states)
        slot.publish(1, 0)
    states.append(ring.states)
    first, second = ring.drain(0), ring.drain(1)
    taken = next(first)
    states.append(ring.states)
    taken.release()
    taken.release()
    states.append(ring.states)
    with next(second):
        states.append(ring.states)
    states.append(ring.states)
    assert [*itertools.chain(*states)] == ["free", "filling", "ready", "draining", "draining", "draining", "free"]


def test_a_producer_waits_for_the_slowest_consumer():
    ring = small(consumers=2)
    filled = []

    def fill() -> None:
        with ring:
            for tag in range(3):
                with ring.fill() as slot:
                    slot.publish(1, tag)
                filled.append(tag)

    with threads(ring) as start:
        start(fill)
        quick, slow = ring.drain(0), ring.drain(1)
        assert [next(quick).tag, next(quick).tag] == [0, 1]
        until(lambda: filled == [0, 1])
        time.sleep(0.1)
        assert filled == [0, 1]
        with next(slow):
            assert filled == [0, 1]
        until(lambda: filled == [0, 1, 2])
        assert [[slot.tag for slot in slots] for slots in (quick, slow)] == [[2], [1, 2]]


def test_closing_lets_consumers_drain_what_is_published_or_being_filled():
    ring = small(slots=3)
    with threads(ring) as start:
        with ring.fill() as first, ring.fill() as second, ring.fill():
            first.publish(1, 0)
            ring.close()
            seen = start(lambda: [slot.tag for slot in ring.drain()])
            time.sleep(0.1)
            assert not seen.done()
            second.publish(1, 1)
        # The third was given back unseen, which ends the wait as well.
        assert seen.result(timeout=20) == [0, 1]
    assert list(ring.drain()) == []


def test_a_closed_ring_takes_nothing_and_says_so():
    ring = small(slots=1)
    with threads(ring) as start, ring.fill() as slot:
        waiting = start(produce, ring, range(1))
        time.sleep(0.05)
        ring.close()
        with pytest.raises(ConfigError, match="closed"):
            waiting.result(timeout=20)
        slot.publish(1, 0)
    with pytest.raises(ConfigError, match="the ring is closed and takes no more slots"), ring.fill():
        pass
    assert ring.closed
    assert not ring.failed


def test_a_producers_exception_reaches_waiting_consumers_and_producers():
    ring = small(slots=1, consumers=2)
    error = KeyError("poisoned batch")
    with threads(ring) as start:
        sides = [start(consume, ring, 0), start(consume, ring, 1)]
        with pytest.raises(KeyError), ring.fill():
            sides.append(start(produce, ring, range(9)))
            raise error
        assert all(side.exception(timeout=20) is error for side in sides)
    assert ring.failed
    with pytest.raises(KeyError), ring.fill():
        pass
    assert ring.states == ["free"]


def test_a_consumers_exception_reaches_producers_and_other_consumers():
    ring = small(consumers=2)
    error = OSError("disk full")

    def write() -> None:
        with ring.drain(0) as slots:
            for slot in slots:
                if slot.tag == 3:
                    raise error

    with threads(ring) as start:
        sides = [start(write), start(consume, ring, 1), start(produce, ring, range(10**6))]
        assert all(side.exception(timeout=20) is error for side in sides)


def test_an_exception_in_the_block_of_one_slot_reaches_the_producer():
    ring = small()
    with threads(ring) as start:
        producer = start(produce, ring, range(10**6))
        for slot in ring.drain():
            with pytest.raises(ZeroDivisionError), slot:
                raise ZeroDivisionError
            break
        assert isinstance(producer.exception(timeout=20), ZeroDivisionError)


@pytest.mark.parametrize("with_block", [True, False])
def test_a_consumer_that_leaves_early_cancels_the_ring(with_block):
    ring = small()
    with threads(ring) as start:
        producer = start(produce, ring, range(10**6))
        if with_block:
            with ring.drain() as slots:
                next(slots)
        else:
            for _ in ring.drain():
                break
        with pytest.raises(RingCancelled, match="consumer 0 stopped before the end"):
            producer.result(timeout=20)


def test_the_first_failure_counts():
    ring = small()
    first, second = ValueError("first"), ValueError("second")
    ring.fail(first)
    ring.fail(second)
    ring.close()
    for _ in range(2):
        with pytest.raises(ValueError, match="first") as caught:
            next(ring.drain())
        assert caught.value is first


def test_publishing_to_a_failed_ring_raises_its_failure_and_frees_the_slot():
    ring = small()
    with pytest.raises(RingCancelled, match="enough"), ring.fill() as slot:
        ring.cancel("enough")
        slot.publish(1, 0)
    assert ring.states == ["free", "free"]


def test_an_interrupt_on_one_side_is_a_cancellation_on_the_others():
    ring = small()
    ring.fail(KeyboardInterrupt())
    with pytest.raises(RingCancelled, match="KeyboardInterrupt on another side") as caught, ring.fill():
        pass
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


def test_leaving_the_block_of_the_ring_closes_it_or_fails_it():
    with small() as ring:
        pass
    assert (ring.closed, ring.failed) == (True, False)
    with pytest.raises(IndexError), small() as ring:
        raise IndexError
    assert ring.failed


def test_a_wait_ends_at_its_timeout_and_can_be_repeated():
    ring = small(slots=1)
    slots = ring.drain(timeout=0.12)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="no slot was published in 0.12 s"):
        next(slots)
    assert 0.12 <= time.monotonic() - begin < 10
    with ring.fill(timeout=0) as slot:
        slot.publish(1, 7)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match="no slot became free"), ring.fill(timeout=timeout):
            pass
    assert next(slots).tag == 7
    assert not ring.failed


def test_a_block_without_publish_gives_the_slot_back_unseen():
    ring = small(slots=1)
    with ring.fill():
        pass
    with ring.fill(timeout=0) as slot:
        slot.publish(1, 5)
    ring.close()
    assert [slot.tag for slot in ring.drain()] == [5]


@pytest.mark.parametrize("side", ["with ring.fill(): pass", "next(ring.drain())"])
def test_ctrl_c_ends_a_wait_and_wakes_the_other_side(side):
    # Whoever started the tests may have had SIGINT ignored, which children inherit.
    code = f"""
import signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from ance_fast.encoding import EmbeddingRing
ring = EmbeddingRing(slots=1, rows=1, dim=1, consumers=2)
if "fill" in {side!r}:
    with ring.fill() as slot: slot.publish(1, 0)
    slots = ring.drain(1)
    taken = next(slots)
def other():
    try:
        for slot in ring.drain(1): pass
    except Exception as error:
        print(type(error).__name__, flush=True)
other = threading.Thread(target=other)
if "fill" not in {side!r}:
    other.start()
try:
    print("waiting", flush=True)
    {side}
except KeyboardInterrupt:
    print("interrupted", flush=True)
if "fill" in {side!r}:
    other.start()
other.join()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.5)  # until it waits inside the engine
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    # Two threads print, and a line and its end are written apart.
    assert sorted(rest.replace("interrupted", " interrupted ").split()) == ["RingCancelled", "interrupted"]
    assert process.returncode == 0


def test_waiting_does_not_hold_the_gil():
    ring = small()
    with threads(ring) as start:
        waiting = start(consume, ring)
        begin = time.monotonic()
        total = sum(i for i in range(200_000))
        assert total
        assert time.monotonic() - begin < 10
        ring.close()
        assert waiting.result(timeout=20) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_views_share_the_memory_of_the_ring(dtype):
    ring = small(dtype=dtype, slots=3, dim=5)
    values = torch.arange(20).reshape(4, 5).to(getattr(torch, dtype))
    with ring.fill() as slot:
        address = slot.tensor.data_ptr()
        assert address % 64 == 0
        assert slot.tensor.dtype == values.dtype
        assert slot.tensor.shape == (4, 5)
        slot.tensor.copy_(values)
        slot.publish(3, 0)
    drained = next(ring.drain())
    assert (drained.rows, drained.tag, drained.sequence) == (3, 0, 0)
    assert torch.equal(drained.tensor, values[:3])
    through_dlpack = torch.from_dlpack(drained)
    assert torch.equal(through_dlpack, values[:3])
    assert {drained.tensor.data_ptr(), through_dlpack.data_ptr()} == {address}
    if dtype != "bfloat16":
        assert drained.array.ctypes.data == address
        assert np.from_dlpack(drained).ctypes.data == address
        np.testing.assert_array_equal(drained.array, values[:3].numpy())
    if dtype != "float32":
        assert drained.bits.ctypes.data == address
        np.testing.assert_array_equal(drained.bits, values[:3].view(torch.uint16).numpy())


def test_what_a_consumer_gets_is_read_only_in_numpy():
    ring = small(dtype="float16")
    produce(ring, range(1))
    slot = next(ring.drain())
    with pytest.raises(ValueError, match="read-only"):
        slot.array[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        slot.bits[0] = 1


def test_slots_are_apart_from_each_other_and_aligned():
    ring = small(slots=5, rows=3, dim=7, dtype="float16")
    addresses = []
    for tag in range(5):
        with ring.fill() as slot:
            addresses.append(slot.array.ctypes.data)
            slot.array[:] = tag
            slot.publish(3, tag)
    assert all(address % 64 == 0 for address in addresses)
    assert min(np.diff(sorted(addresses))) >= 3 * 7 * 2
    ring.close()
    assert [set(slot.array.ravel()) for slot in ring.drain()] == [{tag} for tag in range(5)]


def test_numpy_is_told_that_it_has_no_bfloat16():
    with small(dtype="bfloat16").fill() as slot, pytest.raises(ConfigError, match="NumPy has no bfloat16"):
        _ = slot.array
    with small().fill() as slot, pytest.raises(ConfigError, match="this ring holds float32"):
        _ = slot.bits


def test_views_outlive_the_ring_but_the_ring_does_not_outlive_them():
    ring = small(rows=1000, dim=1000)
    gone = weakref.ref(ring)
    produce(ring, range(1, 2))
    slot = next(ring.drain())
    array, tensor = slot.array, slot.tensor
    del slot, ring
    gc.collect()
    assert gone() is None
    filler = [np.full((1000, 1000), 3, np.float32) for _ in range(4)]
    assert (array == 1).all()
    assert (tensor == 1).all()
    del array, filler
    gc.collect()
    tensor[0, 0] = 2
    assert tensor.sum() == tensor.numel() + 1


def test_a_ring_that_nobody_holds_gives_its_memory_back():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for _ in range(40):
        ring = small(slots=1, rows=4096, dim=1024)
        with ring.fill() as slot:
            slot.array[:] = 1
            slot.publish(4096, 0)
        ring.close()
        for slot in ring.drain():
            assert slot.array[0, 0] == 1
    assert resident() - before < 250e6  # all of them together: 671 MB


def test_a_slot_that_has_gone_back_is_refused_and_old_views_stay_readable():
    ring = small()
    with ring.fill() as slot:
        view = slot.array
        slot.publish(1, 0)
        with pytest.raises(ConfigError, match="gone back to the ring"):
            _ = slot.tensor
        ring.close()
    taken = next(ring.drain())
    taken.release()
    for name in ("array", "tensor", "bits"):
        with pytest.raises(ConfigError):
            getattr(taken, name)
    assert view.sum() == view.sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots is 0; it must be at least 1"),
        ({"rows": -1}, "rows is -1"),
        ({"dim": 2.5}, "dim is 2.5; it must be a whole number"),
        ({"consumers": 0}, "consumers is 0"),
        ({"rows": 2**62}, "more memory than there are addresses"),
        ({"slots": 2**63}, "slots is 9223372036854775808; it must fit 64 bits"),
        ({"dtype": "float64"}, "dtype is float64; a ring holds float32, float16 or bfloat16"),
    ],
)
def test_a_ring_that_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_more_memory_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError):
        small(rows=2**50)


def test_a_dtype_of_torch_is_a_dtype():
    assert small(dtype=torch.bfloat16).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("rows", "tag", "message"),
    [
        (5, 0, "rows is 5; a slot of this ring holds 4"),
        (0, 0, "rows is 0; it must be at least 1"),
        (1, 2**63, "tag is 9223372036854775808; it must fit 64 bits"),
    ],
)
def test_what_cannot_be_published_is_refused(rows, tag, message):
    with small().fill() as slot, pytest.raises(ConfigError, match=message):
        slot.publish(rows, tag)


def test_publishing_twice_is_refused():
    with small().fill() as slot:
        slot.publish(1, 0)
        with pytest.raises(ConfigError, match="gone back"):
            slot.publish(1, 0)


def test_a_consumer_or_timeout_out_of_range_is_refused():
    ring = small(consumers=2)
    for consumer in (-1, 2):
        with pytest.raises(ConfigError, match=f"consumer is {consumer}"):
            ring.drain(consumer)
    for timeout in (-1, float("nan")):
        with pytest.raises(ConfigError, match="timeout is"):
            ring.fill(timeout=timeout)


@pytest.mark.parametrize("seed", range(12))
def test_random_delays_and_failures_end_every_side(seed):
    draw = random.Random(seed)
    ring = small(slots=draw.randint(1, 4), consumers=draw.randint(1, 3))
    fails = {0: "producer", 1: "consumer"}.get(seed % 3)
    error = RuntimeError(f"planned in round {seed}")

    def dawdle(chance: random.Random) -> None:
        if chance.random() < 0.2:
            time.sleep(chance.random() * 0.002)

    def producer(number: int, fail_at: int) -> None:
        chance = random.Random(f"{seed} producer {number}")
        for i in range(40):
            dawdle(chance)
            with ring.fill(timeout=20) as slot:
                slot.array[:1] = 100 * number + i
                dawdle(chance)
                if i == fail_at:
                    raise error
                slot.publish(1, 100 * number + i)

    def consumer(number: int, fail_at: int) -> list[int]:
        chance = random.Random(f"{seed} consumer {number}")
        tags: list[int] = []
        with ring.drain(number, timeout=20) as slots:
            for slot in slots:
                dawdle(chance)
                assert (slot.array == slot.tag).all()
                tags.append(slot.tag)
                if len(tags) == fail_at:
                    raise error
        return tags

    with threads(ring) as start:
        count = draw.randint(1, 3)
        at = draw.randint(1, 30)  # more than the slots before the end, so that no side is through when it happens
        fillers = [start(producer, p, at if fails == "producer" and p == 0 else -1) for p in range(count)]
        drainers = [start(consumer, c, at if fails == "consumer" and c == 0 else -1) for c in range(ring.consumers)]
        errors = [future.exception(timeout=30) for future in fillers]
        ring.close()
        outcomes = [future.exception(timeout=30) for future in drainers]
    if fails:
        assert error in errors + outcomes
        assert {*errors, *outcomes} <= {None, error}
        assert all(outcome is error for outcome in outcomes)
    else:
        assert not any(errors + outcomes)
        orders = [future.result() for future in drainers]
        assert sorted(orders[0]) == [100 * p + i for p in range(count) for i in range(40)]
        assert all(order == orders[0] for order in orders)


def cuda_headers() -> str | None:
    """The folder of CUDA's headers, as nvcc itself finds it."""
    if shutil.which("nvcc") is None:
        return None
    plan = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    folders = [Path(top[1].strip()) / part for part in ("include", "targets/x86_64-linux/include")] if top else []
    return next((str(folder) for folder in folders if (folder / "cuda_runtime_api.h").exists()), None)


@pytest.mark.parametrize("device", ["host", "cuda"])
def test_the_engine_is_free_of_data_races(tmp_path, device):
    """Rows are copied by a thread, or by the code for CUDA on a stand-in for its runtime."""
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-fno-sanitize-recover=all", "-pthread"]
    (tmp_path / "empty.cpp").write_text("int main() { return 0; }\n")
    probe = tmp_path / "empty"
    built = subprocess.run(["g++", *flags, str(tmp_path / "empty.cpp"), "-o", str(probe)], check=False)
    if built.returncode or subprocess.run([str(probe)], check=False).returncode:
        pytest.skip("no thread sanitizer")
    sources = list(SOURCES)
    if device == "cuda":
        include = cuda_headers()
        if include is None:
            pytest.skip("no nvcc, and none of its headers")
        flags += ["-DANCE_FAST_WITH_CUDA=1", f"-isystem{include}"]
        sources += ["csrc/cuda/ring_copies.cpp", "tests/native/host_cuda_runtime.cpp"]
    program = tmp_path / "stress"
    subprocess.run(["g++", *flags, "-Icsrc", *sources, "-o", str(program)], cwd=ROOT, check=True)
    result = subprocess.run([str(program), "100"], capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    assert "100 rounds without a violation" in result.stdout
