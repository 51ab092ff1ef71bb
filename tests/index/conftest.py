from __future__ import annotations

import sys

import numpy as np
import pytest


@pytest.fixture
def corpus() -> np.ndarray:
    """1,200 unit vectors of 32 dimensions around 40 centres."""
    generator = np.random.default_rng(7)
    centres = generator.normal(size=(40, 32))
    vectors = centres[generator.integers(0, 40, 1200)] + 0.35 * generator.normal(size=(1200, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def queries(corpus: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(8).normal(size=(25, 32)).astype(np.float32)
    return corpus[::48] + 0.1 * noise


@pytest.fixture
def without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
