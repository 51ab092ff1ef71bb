from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ance_fast.errors import ConfigError
from ance_fast.index import vectors
from ance_fast.index.vectors import normalized, prepared_blocks, query_matrix, sample, vector_source


class Shards:
    """Three arrays of 4, 0 and 3 vectors, as an encoded corpus has them."""

    fingerprint = "encoder-1"

    def __init__(self, array: np.ndarray, ids: list[str] | None = None) -> None:
        self.array = array
        self.ids = [f"d{row}" for row in range(len(array))] if ids is None else ids

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.array[:4], self.array[4:4], self.array[4:]))


def collect(embeddings: object, metric: str = "ip") -> np.ndarray:
    return np.concatenate(list(prepared_blocks(vector_source(embeddings), metric, str)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_floating_type_becomes_float32(dtype: type) -> None:
    array = np.arange(12).reshape(4, 3).astype(dtype)
    assert (collect(array) == array).all()
    assert collect(np.asfortranarray(array)).flags.c_contiguous
    assert collect(array).dtype == np.float32


def test_torch_tensors_of_any_floating_type_are_read_without_their_gradient() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert (collect(tensor.bfloat16()) == tensor.numpy()).all()
    assert (collect(tensor.half().requires_grad_()) == tensor.numpy()).all()


def test_shards_bring_their_ids_and_fingerprint() -> None:
    array = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    source = vector_source(Shards(array))
    assert (source.count, source.dim, source.fingerprint, list(source.ids)) == (
        7, 3, "encoder-1", [f"d{row}" for row in range(7)],
    )  # fmt: skip
    assert (collect(Shards(array)) == array).all()


def test_shards_with_another_number_of_vectors_than_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="7 vectors for 2 ids"):
        collect(Shards(np.ones((7, 3)), ["a", "b"]))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.ones(3), r"shape \[3\]"),
        (np.ones((2, 0)), r"shape \[2, 0\]"),
        (np.ones((2, 2, 2)), r"shape \[2, 2, 2\]"),
        (np.ones((2, 2), int), "type int64"),
        ([[1.0], [1.0, 2.0]], "rectangular"),
        (Shards(np.ones((0, 3)), []), "shards are empty"),
    ],
)
def test_shapes_and_types_that_are_no_embeddings_are_refused(embeddings: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vector_source(embeddings)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_the_first_row_with_nan_or_infinity_is_named(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 4)
    array = np.ones((10, 3))
    array[6, 1] = array[9, 0] = bad
    with pytest.raises(ConfigError, match=r"vector of document 'six' \(row 6\)"):
        list(prepared_blocks(vector_source(array), "ip", lambda row: {6: "'six'"}[row]))


def test_normalised_rows_have_length_one_and_zero_rows_stay_zero() -> None:
    array = np.array([[3, 4], [0, 0], [1e30, 0], [1e-30, 0]], np.float32)
    assert np.allclose(normalized(array), [[0.6, 0.8], [0, 0], [1, 0], [1, 0]])


def test_the_sample_is_distinct_rows_in_order_and_depends_on_the_seed_only() -> None:
    array = np.arange(50, dtype=np.float32)[:, None]
    source = vector_source(array)
    blocks = [array[:20], array[20:21], array[21:]]
    drawn = sample(source, iter(blocks), 15, seed=3)[:, 0]
    assert len(set(drawn)) == 15
    assert (np.diff(drawn) > 0).all()
    assert (sample(source, iter([array]), 15, seed=3)[:, 0] == drawn).all()
    assert (sample(source, iter([array]), 15, seed=4)[:, 0] != drawn).any()
    assert (sample(source, iter(blocks), 50, seed=3) == array).all()


def test_one_query_vector_is_a_matrix_of_one_row() -> None:
    assert query_matrix(np.array([3.0, 4.0]), 2, "cosine").tolist() == pytest.approx(np.array([[0.6, 0.8]]))
    assert query_matrix(np.empty((0, 2), np.float32), 2, "ip").shape == (0, 2)
    with pytest.raises(ConfigError, match=r"shape \[3\], the index has 2 dimensions"):
        query_matrix(np.ones(3), 2, "ip")
    with pytest.raises(ConfigError, match="vector of query 0"):
        query_matrix(np.array([np.nan, 1.0]), 2, "ip")
