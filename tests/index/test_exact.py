from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.index.exact import ExactBackend
from ance_fast.index.index import Index
from ance_fast.index.selection import Selection

pytestmark = pytest.mark.usefixtures("without_faiss")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 10), st.integers(0, 2**16))
def test_integer_vectors_are_ranked_by_score_then_position(count: int, dim: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, query = generator.integers(-2, 3, (count, dim)), generator.integers(-2, 3, (1, dim))
    mask = generator.random(count) < 0.7
    backend = ExactBackend(dim)
    backend.add(vectors[: count // 2].astype(np.float32))
    backend.add(vectors[count // 2 :].astype(np.float32))
    _, positions = backend.search(query.astype(np.float32), k, Selection(count, mask), {})
    expected = sorted(np.flatnonzero(mask).tolist(), key=lambda row: (-int(vectors[row] @ query[0]), row))[:k]
    assert [row for row in positions[0].tolist() if row >= 0] == expected


def test_flat_works_without_faiss_from_build_to_load(corpus: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    index = Index.build(corpus[:1000], metric="cosine")
    index.add(corpus[1000:])
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    assert index.backend == loaded.backend == "exact"
    hits = loaded.search(queries, 10, exclude=["3"])
    scores = queries @ corpus.T / np.linalg.norm(queries, axis=1, keepdims=True)
    scores[:, 3] = -np.inf
    assert np.allclose(hits.scores, -np.sort(-scores, axis=1)[:, :10], atol=1e-5)
    assert (loaded.reconstruct([5, 2]) == index.reconstruct([5, 2])).all()
    assert np.allclose(loaded.reconstruct([5, 2]), corpus[[5, 2]], atol=1e-6)


def test_any_other_factory_names_the_extra_to_install(corpus: np.ndarray) -> None:
    with pytest.raises(MissingDependencyError, match=r"ance_fast\[cpu\]"):
        Index.build(corpus, factory="HNSW32")


def test_search_parameters_and_absent_devices_are_refused(corpus: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="'nprobe' does not apply to Flat"):
        Index.build(corpus).search(corpus[0], 1, params={"nprobe": 3})


def test_cuda_without_a_device_is_refused(corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        Index.build(corpus, device="cuda")
