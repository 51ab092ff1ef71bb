"""Arrays of other libraries go into the ops without a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ance_fast.errors import ConfigError
from ance_fast.ops import contrastive_loss, pairwise_loss, pool_normalize
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


@pytest.mark.parametrize("wrong", [[1.0, 2.0], "q", None])
def test_what_is_no_array_is_named(wrong):
    with pytest.raises(ConfigError, match="p must be a torch tensor or an array with DLPack"):
        contrastive_loss(torch.ones(1, 2), wrong)


def test_an_array_that_cannot_be_shared_is_refused():
    array = np.ones((2, 2), dtype=np.dtype("float32").newbyteorder())
    with pytest.raises(ConfigError, match="q cannot be shared without a copy"):
        contrastive_loss(array, torch.ones(2, 2))
