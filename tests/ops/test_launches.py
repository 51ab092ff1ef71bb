"""What a call of a loss with the GPU's kernels asks of the device: launches counted, waiting forbidden.

Triton's interpreter runs the kernels on CPU tensors; every torch operation around them is one that a GPU would launch.
"""

from __future__ import annotations

import collections
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ance_fast.ops import (
    contrastive_chunks,
    contrastive_loss,
    contrastive_problem,
    loss_wiring,
    pairwise_loss,
    pairwise_loss_triton,
)
from ance_fast.ops import softmax_gradient_triton as softmax

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="no interpreter beside a GPU, where test_gpu.py counts"
)
KERNELS = ("softmax_gradient_kernel", "tile_statistics_kernel", "finish_kernel", "tile_gradient_kernel")
# Views and allocations.
FREE = {
    *("empty", "empty_like", "new_empty", "empty_strided", "scalar_tensor", "detach", "alias", "view", "_unsafe_view"),
    *("slice", "select", "split", "t", "transpose", "permute", "unbind", "expand", "unsqueeze", "squeeze"),
}
FILLS = {"arange", "zeros", "ones", "full"}
# What a host can only know, or can only size, after the device has finished.
WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "is_nonzero", "equal"}


def waits(name, args, kwargs):
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return name in WAITS


class Counter(TorchDispatchMode):
    """Launches by name, those on single numbers apart, and the operations that would wait for the device."""

    def __init__(self):
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.on_numbers: collections.Counter[str] = collections.Counter()
        self.waits: list[str] = []

    def clear(self):
        self.__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if waits(name, args, kwargs):
            self.waits.append(name)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if name in FILLS or (name not in FREE and any(tensor.ndim for tensor in tensors)):
            self.launches[name] += 1
        elif name not in FREE:
            self.on_numbers[name] += 1
        return func(*args, **kwargs)


class Counting:
    """Stands in for a kernel and counts its launches; what the interpreter does inside is not counted."""

    def __init__(self, kernel, name, counter):
        self.kernel, self.name, self.counter = kernel, name, counter

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.counter.launches[self.name] += 1
            with _disable_current_modes():
                self.kernel[grid](*args, **kwargs)

        return launch


@pytest.fixture
def counted(monkeypatch):
    """Run a loss and its backward pass; the counter of both."""
    counter = Counter()
    for name in KERNELS:
        monkeypatch.setattr(softmax, name, Counting(getattr(softmax, name), name, counter))
    for module in (contrastive_problem, loss_wiring):  # no look into tensors, as if they were on a GPU
        monkeypatch.setattr(module, "readable", lambda _: False)

    def run(**options):
        torch.manual_seed(0)
        q, p = (torch.randn(n, 8, requires_grad=True) for n in (12, 20))
        counter.clear()
        with counter:
            contrastive_loss(q, p, backend="triton", **options).backward()
        assert counter.waits == []
        return counter

    return run


def masks():
    return {
        "labels": torch.arange(12),
        "doc_ids": torch.arange(20) // 2,
        "positives": (torch.arange(13), torch.arange(12) % 7),
    }


def test_a_chunk_is_three_products_and_one_kernel(counted):
    one, three = counted(chunk_rows=12).launches.copy(), counted(chunk_rows=4).launches
    assert one["mm"] == 3
    assert one["softmax_gradient_kernel"] == 1
    assert (three - one).total() == 2 * 4


def test_few_launches_surround_the_chunks(counted):
    counter = counted(chunk_rows=12)
    # The numbers of the rows, the mean, and in the backward pass a product for each gradient.
    assert counter.launches == {"arange": 1, "mm": 3, "softmax_gradient_kernel": 1, "mean": 1, "mul": 2}
    # The scale's dtype; step and upstream gradient; the 1 that a backward pass begins with.
    assert counter.on_numbers.total() <= 4, counter.on_numbers


def test_a_tile_is_two_kernels_and_four_products(counted, monkeypatch):
    def launches(width):
        monkeypatch.setattr(contrastive_chunks, "default_tiling", lambda *_: contrastive_chunks.Tiling(12, width))
        return counted().launches.copy()

    two, four = launches(10), launches(5)
    assert two["finish_kernel"] == four["finish_kernel"] == 1
    assert (four - two).total() == 2 * 6


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("scale", [20.0, torch.tensor(3.0, requires_grad=True)])
def test_nothing_waits_for_the_device(counted, both, scale):
    counted(bidirectional=both, scale=scale, chunk_rows=5, **masks())
    counted(bidirectional=both, scale=scale)


@pytest.mark.parametrize("masked", [False, True])
def test_the_pairwise_loss_is_one_launch(masked, monkeypatch):
    counter, name = Counter(), "pairwise_loss_kernel"
    kernel = Counting(pairwise_loss_triton.pairwise_loss_kernel, name, counter)
    monkeypatch.setattr(pairwise_loss_triton, name, kernel)
    q, pos, neg = (torch.randn(*shape, requires_grad=True) for shape in ((5, 8), (5, 8), (5, 3, 8)))
    mask = torch.arange(15).reshape(5, 3) % 4 > 0 if masked else None
    pairwise_loss(q, pos, neg, mask=mask, backend="triton")  # the first call of a stream makes its counter
    counter.clear()
    with counter:
        pairwise_loss(q, pos, neg, mask=mask, backend="triton", scale=2.0)
    assert counter.launches == {name: 1}
    assert counter.waits == []


def test_waiting_would_be_noticed():
    counter, values = Counter(), torch.arange(5)
    with counter:
        (
            int(values[0]),
            values[values > 2],
            torch.unique(values),
            values.repeat_interleave(torch.ones(5, dtype=torch.int64)),
        )
    assert counter.waits == ["_local_scalar_dense", "index", "_unique2", "repeat_interleave"]
