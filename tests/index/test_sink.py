"""An index that is filled while its vectors are still being made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ance_fast.errors import ConfigError
from ance_fast.index import Index, IndexSink
from ance_fast.index.faiss_index import FaissBackend


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def fill(sink: IndexSink, vectors: np.ndarray, rows: int = 70) -> Index:
    block = np.empty((rows, vectors.shape[1]), np.float32)  # memory that is used again, as a ring's is
    for start in range(0, len(vectors), rows):
        piece = vectors[start : start + rows]
        block[: len(piece)] = piece
        sink.write(start, block[: len(piece)])
    block[:] = np.nan
    return sink.finish()


def test_an_index_on_a_gpu_is_given_memory_that_nobody_uses_again(vectors: np.ndarray) -> None:
    sink = IndexSink(range(300), 16, factory="HNSW16")
    backend = sink._index._backend
    assert isinstance(backend, FaissBackend)
    late: list[np.ndarray] = []
    backend.on_gpu = True
    backend._index = SimpleNamespace(add=late.append, ntotal=0)
    block = vectors[:70].copy()
    sink.write(0, block)
    block[:] = np.nan
    np.testing.assert_array_equal(late[0], vectors[:70])


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_it_is_the_index_that_build_makes(vectors: np.ndarray, factory: str, metric: str) -> None:
    ids = [f"d{row}" for row in range(len(vectors))]
    sunk = fill(IndexSink(ids, 16, factory=factory, metric=metric, fingerprint="f"), vectors)
    built = Index.build(vectors, ids, factory, metric)
    wanted, found = built.search(vectors[:20], 10), sunk.search(vectors[:20], 10)
    assert sunk.fingerprint == "f"
    if factory == "Flat":
        np.testing.assert_array_equal(found.positions, wanted.positions)
        np.testing.assert_array_equal(sunk.reconstruct(range(300)), built.reconstruct(range(300)))
    else:  # graphs are built by several threads at once
        assert (found.positions[:, 0] == wanted.positions[:, 0]).mean() > 0.9
    assert found.ids[3][0] == ids[found.positions[3, 0]]


def test_what_it_refuses(vectors: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="IVF4,Flat is trained on a sample"):
        IndexSink(["a"], 16, factory="IVF4,Flat")
    with pytest.raises(ConfigError, match="CAGRA is trained on a sample"):
        IndexSink(["a"], 16, factory="CAGRA")
    sink = IndexSink([f"d{row}" for row in range(300)], 16)
    sink.write(0, vectors[:100])
    with pytest.raises(ConfigError, match="rows 200.. after 100 rows"):
        sink.write(200, vectors[200:])
    with pytest.raises(ConfigError, match="100 of 300 rows were added"):
        sink.finish()
