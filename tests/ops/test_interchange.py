"""Arrays of other libraries go into the ops without a copy, and the streams keep their order."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from ance_fast.errors import ConfigError
from ance_fast.ops import contrastive_loss, pairwise_loss, pool_head, pool_normalize
from ance_fast.ops.interchange import as_tensor


def test_an_array_is_a_view_of_the_same_memory():
    array = np.arange(6, dtype=np.float32)
    tensor = as_tensor("q", array)
    array[2] = 7
    assert tensor[2] == 7
    assert as_tensor("q", tensor) is tensor


class Producer:
    """An array library that is asked for its data as DLPack asks."""

    def __init__(self):
        self.array = torch.ones(2, 3)
        self.asked = []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        self.asked.append(options)
        return self.array.__dlpack__()


def test_any_library_with_dlpack_will_do():
    producer = Producer()
    assert as_tensor("q", producer).data_ptr() == producer.array.data_ptr()
    assert len(producer.asked) == 1


def test_the_ops_take_arrays():
    rng = np.random.default_rng(0)
    q, p = rng.standard_normal((3, 4), dtype=np.float32), rng.standard_normal((5, 4), dtype=np.float32)
    documents = np.array([1, 2, 1, 4, 2])
    wanted = contrastive_loss(torch.tensor(q), torch.tensor(p), doc_ids=torch.tensor(documents))
    assert contrastive_loss(q, p, doc_ids=documents) == wanted
    negatives = p[None, :2].repeat(3, 0)
    wanted = pairwise_loss(torch.tensor(q), torch.tensor(p[:3]), torch.tensor(negatives))
    assert pairwise_loss(q, p[:3], negatives) == wanted
    offsets = np.array([0, 2, 5], dtype=np.int32)
    wanted = pool_normalize(torch.tensor(p), torch.tensor(offsets))
    np.testing.assert_array_equal(np.from_dlpack(pool_normalize(p, offsets)), wanted.numpy())
    parameters = (p[:, :4], p[:, 0], q[0, :1].repeat(5), p[:, 1])
    head, head_bias, weight, bias = (torch.tensor(x) for x in parameters)
    wanted = pool_head(torch.tensor(p), torch.tensor(offsets), head, head_bias, weight=weight, bias=bias)
    actual = pool_head(p, offsets, *parameters[:2], weight=parameters[2], bias=parameters[3])
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("wrong", [[1.0, 2.0], "q", None])
def test_what_is_no_array_is_named(wrong):
    with pytest.raises(ConfigError, match="p must be a torch tensor or an array with DLPack"):
        contrastive_loss(torch.ones(1, 2), wrong)


@pytest.mark.parametrize(
    "array",
    [np.ones((2, 2), dtype=np.dtype("float32").newbyteorder()), np.ones((2, 2), dtype=np.float32)[::-1]],
    ids=["big-endian", "reversed"],
)
def test_an_array_that_cannot_be_shared_is_refused(array):
    with pytest.raises(ConfigError, match="q cannot be shared without a copy"):
        contrastive_loss(array, torch.ones(2, 2))


class DeviceArray:
    """An array that has `__cuda_array_interface__` alone, in memory of the host."""

    def __init__(self, **changes):
        self.memory = torch.arange(6.0).reshape(2, 3)
        self.__cuda_array_interface__ = {
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (self.memory.data_ptr(), False),
            "strides": None,
            "version": 3,
        } | changes


class Stream:
    """A stream of torch's that writes down what it is told to wait for."""

    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


@pytest.fixture
def current(monkeypatch):
    """Torch's current stream where torch takes host memory for a device's."""
    stream = Stream()
    monkeypatch.setattr(torch, "as_tensor", lambda array: array.memory)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "legacy default")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: f"handle {handle}")
    return stream


@pytest.mark.parametrize(
    ("entry", "waited"),
    [
        ({}, []),
        ({"stream": None}, []),
        ({"stream": 1}, ["legacy default"]),
        ({"stream": 2}, ["handle 2"]),
        ({"stream": 0x5570}, ["handle 21872"]),
        ({"stream": np.int64(16)}, ["handle 16"]),
    ],
)
def test_the_current_stream_waits_for_the_one_that_the_interface_names(current, entry, waited):
    array = DeviceArray(**entry)
    assert as_tensor("q", array) is array.memory
    assert current.waited == waited


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"stream": 0}, "its stream is 0, which the interface does not allow"),
        ({"stream": -1}, "its stream is -1"),
        ({"stream": "default"}, "'str' object cannot be interpreted as an integer"),
        ({"data": (64, True)}, "it is read-only"),
        ({"mask": DeviceArray()}, "it is masked"),
        ({"typestr": ">f4"}, "its numbers are big-endian"),
        ({"strides": (-12, 4)}, "it has negative strides"),
        ({"data": (64, False)}, "torch's default device is cpu, not the array's"),
        ({"data": None}, "cannot unpack"),
    ],
)
def test_a_device_array_that_cannot_be_shared_is_refused(current, entry, message):
    with pytest.raises(ConfigError, match=f"q cannot be shared without a copy .*{message}"):
        as_tensor("q", DeviceArray(**entry))
    assert current.waited == []


def test_a_dtype_that_torch_does_not_know_is_refused(current, monkeypatch):
    def refuse(array):
        raise TypeError("can't convert np.ndarray of type numpy.void")

    monkeypatch.setattr(torch, "as_tensor", refuse)
    with pytest.raises(ConfigError, match="q cannot be shared without a copy .can't convert"):
        as_tensor("q", DeviceArray(typestr="|V2"))


@pytest.fixture
def cupy():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return pytest.importorskip("cupy", reason="no GPU array library (cupy)")


class InterfaceAlone:
    """A CuPy array that hides its DLPack."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


WAYS = pytest.mark.parametrize("way", [lambda array: array, InterfaceAlone], ids=["dlpack", "interface"])


@WAYS
def test_a_cupy_array_is_shared_both_ways_and_kept_alive(cupy, way):
    array = cupy.arange(6, dtype=cupy.float32).reshape(2, 3)[:, 1:]
    shared = way(array)
    view = as_tensor("q", shared)
    assert view.data_ptr() == array.data.ptr
    assert (view.shape, view.stride()) == ((2, 2), (3, 1))
    assert view.tolist() == array.tolist()
    assert cupy.from_dlpack(view).data.ptr == array.data.ptr
    if way is InterfaceAlone:
        assert as_tensor("q", way(cupy.empty((0, 3), dtype=cupy.float32))).shape == (0, 3)
        alive = weakref.ref(shared)
        del shared
        gc.collect()
        assert alive() is not None
        del view
        gc.collect()
        assert alive() is None


@WAYS
def test_an_op_waits_for_what_cupy_has_queued(cupy, way):
    offsets = torch.tensor([0, 2, 4], dtype=torch.int32, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()), cupy.cuda.Stream(non_blocking=True) as producer:
        array = cupy.zeros((4, 8), dtype=cupy.float32)
        for value in (1.0, 2.0):  # the first time loads the kernels, which may wait for the device
            with torch.cuda.stream(torch.cuda.ExternalStream(producer.ptr)):
                torch.cuda._sleep(200_000_000)
            array.fill(value)
            out = pool_normalize(way(array), offsets, norm="none")
            asynchronous = not producer.done
            assert (out == value).all()
        assert asynchronous


def test_cupy_waits_for_what_an_op_has_queued(cupy):
    offsets = torch.tensor([0, 2, 4], dtype=torch.int32, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()), cupy.cuda.Stream(non_blocking=True):
        for value in (1.0, 2.0):
            hidden = torch.zeros(4, 8, device="cuda", requires_grad=True)
            torch.cuda._sleep(200_000_000)
            with torch.no_grad():
                hidden.fill_(value)
            shared = cupy.from_dlpack(pool_normalize(hidden, offsets, norm="none").detach())
            result = shared * 3
            asynchronous = not torch.cuda.current_stream().query()
            assert (result == 3 * value).all()
        assert asynchronous
