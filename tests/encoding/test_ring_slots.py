"""Rows that get into slots and out of them by `copy_from` and `copy_to`."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from ance_fast.encoding import EmbeddingRing
from ance_fast.encoding import ring_slots as module
from ance_fast.errors import ConfigError

pytestmark = pytest.mark.timeout(60)
DTYPES = ("float32", "float16", "bfloat16")


def small(**changes: object) -> EmbeddingRing:
    return EmbeddingRing(**{"slots": 1, "rows": 6, "dim": 5, "pinned": False, **changes})


def passed_on(ring: EmbeddingRing, *copies: tuple[torch.Tensor, slice | None]) -> torch.Tensor:
    """What a consumer gets when the copies are made into a slot of zeros."""
    with ring.fill() as slot:
        slot.tensor.zero_()
        for tensor, rows in copies:
            slot.copy_from(tensor, rows)
        slot.publish(ring.rows, 0)
    ring.close()
    (result,) = [slot.tensor.clone() for slot in ring.drain()]
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [*DTYPES, "float64"])
def test_rows_arrive_in_the_dtype_of_the_ring(dtype, given):
    values = torch.randn(6, 5).to(getattr(torch, given))
    assert torch.equal(passed_on(small(dtype=dtype), (values, None)), values.to(getattr(torch, dtype)))


@pytest.mark.parametrize(
    ("rows", "first"), [(None, 0), (slice(0, 3), 0), (slice(2, 5), 2), (slice(3, None), 3), (slice(-3, None), 3)]
)
def test_rows_go_where_they_are_said_to(rows, first):
    values = torch.randn(3, 5)
    expected = torch.zeros(6, 5)
    expected[first : first + 3] = values
    assert torch.equal(passed_on(small(), (values, rows)), expected)


def test_several_copies_fill_one_slot():
    values = torch.randn(6, 5)
    copies = [(values[4:], slice(4, 6)), (values[:1], None), (values[1:4], slice(1, 4))]
    assert torch.equal(passed_on(small(), *copies), values)


def test_strided_rows_and_those_with_gradients_are_copied_too():
    values = torch.randn(5, 6, requires_grad=True)
    assert torch.equal(passed_on(small(), (values.T, None)), values.detach().T)
    wide = torch.randn(6, 10)
    assert torch.equal(passed_on(small(), (wide[:, ::2], None)), wide[:, ::2])


@pytest.mark.parametrize(
    ("shape", "rows", "message"),
    [
        ((7, 5), None, "rows 0 to 7 in steps of 1 are not rows of a slot, which holds 6"),
        ((0, 5), None, "rows 0 to 0 in steps of 1 are not rows of a slot"),
        ((2, 4), None, r"the tensor is \[2, 4\]; rows 0 to 2 of a slot are \[2, 5\]"),
        ((5,), slice(0, 1), r"the tensor is \[5\]; rows 0 to 1 of a slot are \[1, 5\]"),
        ((2, 5), slice(0, 3), r"the tensor is \[2, 5\]; rows 0 to 3 of a slot are \[3, 5\]"),
        ((2, 5), slice(5, 7), "rows 5 to 7 in steps of 1 are not rows of a slot"),
        ((2, 5), slice(0, 4, 2), "rows 0 to 4 in steps of 2 are not rows of a slot"),
        ((2, 5), slice(4, 2), "rows 4 to 2 in steps of 1 are not rows of a slot"),
    ],
)
def test_rows_that_do_not_fit_are_refused(shape, rows, message):
    with small().fill() as slot, pytest.raises(ConfigError, match=message):
        slot.copy_from(torch.zeros(shape), rows)


def test_a_slot_that_has_gone_back_takes_and_gives_nothing():
    ring = small()
    with ring.fill() as slot:
        slot.publish(1, 0)
        with pytest.raises(ConfigError, match="gone back"):
            slot.copy_from(torch.zeros(1, 5))
    ring.close()
    drained = next(ring.drain())
    drained.release()
    with pytest.raises(ConfigError, match="gone back"):
        drained.copy_to(np.empty((1, 5), np.float32))


# Sizes on both sides of those from which on the cache is passed by, and targets at every offset from a line of it.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dim", "slots"), [(6, 5, 1), (700, 257, 2), (4100, 1030, 3)])
def test_rows_leave_as_they_came(dtype, rows, dim, slots):
    ring = EmbeddingRing(slots=slots, rows=rows, dim=dim, dtype=dtype, pinned=False)
    values = torch.arange(rows * dim, dtype=torch.int32).remainder(60_000).to(torch.uint16).reshape(rows, dim)
    values = values.float() if dtype == "float32" else values.view(getattr(torch, dtype))
    with ring.fill() as slot:
        slot.copy_from(values)
        slot.publish(rows - 1, 0)
    ring.close()
    slot = next(ring.drain())
    kind = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    expected = values[: rows - 1].view(torch.uint16 if dtype == "bfloat16" else values.dtype).numpy()
    for offset in (0, 1, 17):
        whole = np.ones((rows - 1) * dim + 64, kind)  # pages that were used before
        target = whole[offset : offset + expected.size].reshape(expected.shape)
        slot.copy_to(target)
        assert target.tobytes() == expected.tobytes()
        assert (whole[:offset] == 1).all()
        assert (whole[offset + expected.size :] == 1).all()
    fresh = np.empty_like(expected)
    slot.copy_to(fresh)
    assert fresh.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "target",
    [
        np.empty((2, 5), np.float32),
        np.empty((3, 5), np.float16),
        np.empty((5, 3), np.float32).T,
        np.broadcast_to(np.float32(0), (3, 5)),
    ],
)
def test_a_target_that_does_not_match_is_refused(target):
    ring = small()
    with ring.fill() as slot:
        slot.publish(3, 0)
    ring.close()
    slot = next(ring.drain())
    with pytest.raises(ConfigError, match=r"the target is .*; it must be float32 \[3, 5\], C-contiguous and writeable"):
        slot.copy_to(target)


def test_rows_copied_to_a_slot_that_is_given_up_are_seen_by_nobody():
    ring = small()
    with ring.fill() as slot:
        slot.copy_from(torch.randn(6, 5))
    assert ring.states == ["free"]
    assert not passed_on(ring, (torch.zeros(6, 5), None)).any()


def test_torch_copies_in_place_of_an_engine_without_cuda_but_not_in_strict_mode(monkeypatch, caplog):
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    with pytest.raises(ConfigError, match="built without its CUDA part.* and ANCE_FAST_STRICT=1"):
        module._refuse_when_strict()
    monkeypatch.setenv("ANCE_FAST_STRICT", "0")
    module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        module._refuse_when_strict()
        module._refuse_when_strict()
    assert [record.getMessage().endswith("each copy is waited for") for record in caplog.records] == [True]
