"""Choosing who holds the vectors: FAISS on the CPU or a GPU, or torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.exact import ExactBackend
from ance_fast.index.faiss_index import new_backend
from ance_fast.index.faiss_library import faiss_kind
from ance_fast.index.ids import IdTable
from ance_fast.index.vectors import VectorSource, prepared_blocks, sample


class Backend(Protocol):
    """What holds the vectors. Blocks and queries are prepared float32 [m, dim]; k is at most the rows allowed."""

    name: str

    def __len__(self) -> int: ...
    def add(self, block: np.ndarray) -> None: ...
    def check_params(self, params: Mapping[str, int]) -> None: ...
    def search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def reconstruct(self, rows: np.ndarray) -> np.ndarray: ...
    def save(self, directory: Path) -> None: ...


def make_backend(
    source: VectorSource, ids: IdTable, factory: str, metric: str, device: str, train_size: int | None, seed: int
) -> Backend:
    """An empty backend for `factory`, trained on a sample of `source` if it has to be. Errors as for `Index.build`."""
    _check_device(device)
    if train_size is not None and train_size < 1:
        raise ConfigError(f"train_size is {train_size}; it must be at least 1")
    if factories.is_flat(factory):
        return flat_backend(source.dim, device)

    def training(faiss: Any, index: Any) -> np.ndarray:
        wanted = factories.training_size(faiss, index) if train_size is None else train_size
        limited = train_size is not None and train_size < source.count
        points = min(wanted, source.count)
        factories.check_training(faiss, index, factory, points, "train_size is" if limited else "the corpus has")
        return sample(source, prepared_blocks(source, metric, lambda row: repr(ids[row])), points, seed)

    return new_backend(factory, source.dim, device, seed, training)


def flat_backend(dim: int, device: str) -> Backend:
    """An empty exact backend: FAISS where it can run on `device`, else torch."""
    _check_device(device)
    kind = faiss_kind()
    if kind is None or (device.startswith("cuda") and kind == "faiss-cpu"):
        import torch

        return ExactBackend(dim, ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return new_backend("Flat", dim, device, 0, None)


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise ConfigError(f"unknown device {device!r}; choose 'auto', 'cpu', 'cuda' or 'cuda:N'")
