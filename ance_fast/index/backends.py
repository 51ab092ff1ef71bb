"""Who holds the vectors: our exact search for Flat, FAISS for everything else."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.devices import torch_devices
from ance_fast.index.exact import ExactBackend
from ance_fast.index.faiss_gpu import cagra
from ance_fast.index.faiss_index import FaissBackend
from ance_fast.index.faiss_library import import_faiss
from ance_fast.index.ids import IdTable
from ance_fast.index.mapped import DTYPES, MappedFile
from ance_fast.index.selection import Selection
from ance_fast.index.vectors import VectorSource, prepared_blocks, sample

Progress = Callable[[int], None]
# Copied while still in the cache from being checked.
FLAT_ROWS = 2048


class Backend(Protocol):
    """What holds the vectors. Blocks and queries are prepared float32 [m, dim]; k is at most the rows allowed."""

    name: str

    def __len__(self) -> int: ...
    def add(self, block: np.ndarray) -> None: ...
    def replace(self, rows: np.ndarray, vectors: np.ndarray) -> None: ...
    def remove(self, rows: np.ndarray) -> None: ...
    def check_params(self, params: Mapping[str, int]) -> None: ...
    def search(
        self, queries: np.ndarray, k: int, selection: Selection, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def reconstruct(self, rows: np.ndarray) -> np.ndarray: ...
    def save(self, directory: Path) -> dict[str, Any]: ...


def build_backend(
    source: VectorSource,
    ids: IdTable,
    factory: str,
    metric: str,
    devices: Sequence[str],
    dtype: str | None,
    train_size: int | None,
    seed: int,
    progress: Progress | None,
) -> Backend:
    """A backend for `factory` that holds the vectors of `source`. Errors as for `Index.build`."""
    if train_size is not None and train_size < 1:
        raise ConfigError(f"train_size is {train_size}; it must be at least 1")

    def blocks(source: VectorSource = source) -> Any:
        return prepared_blocks(source, metric, lambda row: repr(ids[row]))

    if factories.is_flat(factory):
        # Rows of another dtype than the stored one, and normalised ones, are converted from what they stand for.
        as_stored = metric != "cosine" and stored_dtype(source, metric, dtype) == source.dtype.name
        exact = ExactBackend(
            source.dim,
            torch_devices(devices),
            dtype=stored_dtype(source, metric, dtype),
            mean=source.mean if as_stored else None,
        )
        exact.reserve(source.count)
        for block in blocks((source.stored() if as_stored else source).in_slices(FLAT_ROWS)):
            exact.add_stored(block)
            _advance(progress, block)
        return exact
    degree = factories.cagra_degree(factory)
    if degree is not None:
        faiss = import_faiss(factory)
        graph = cagra(faiss, sample(source, blocks(), source.count, seed), degree, devices)
        return FaissBackend(factory, graph, devices)
    backend = FaissBackend(factory, _trained(source, blocks, factory, train_size, seed), devices)
    backend.reserve(source.count)
    if progress is not None:
        progress(0)
    for block in blocks():
        backend.add(block)
        _advance(progress, block)
    return backend


def stored_dtype(source: VectorSource, metric: str, dtype: str | None) -> str:
    """The dtype Flat stores vectors in: `dtype`, or float16 if they come so and need not be normalised."""
    if dtype is None:
        return "float16" if source.dtype == np.float16 and metric != "cosine" else "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    return dtype


def attached_backend(source: VectorSource, metric: str, devices: Sequence[str]) -> ExactBackend:
    """Exact search over the vectors of `source` where they lie."""
    exact = ExactBackend(
        source.dim, torch_devices(devices), dtype=source.dtype.name, mean=source.mean, normalize=metric == "cosine"
    )  # fmt: skip
    for rows in source.parts():
        if str(rows.dtype).removeprefix("torch.") not in (*DTYPES, "bfloat16"):
            raise ConfigError(f"embeddings are of type {rows.dtype}; to be searched where they are: float32 or float16")
        # A slice of a mapped file is not known by the file: that could not be linked when the index is saved.
        whole = isinstance(rows, np.memmap) and isinstance(rows.base, mmap.mmap)
        if whole and str(rows.filename).endswith(".npy"):
            file = MappedFile(str(rows.filename), source.dim)
            exact.attach(file.rows, file, lent=True, on_disk=True)
        else:
            exact.attach(rows, lent=True, on_disk=isinstance(rows, np.memmap))
    return exact


def _trained(
    source: VectorSource, blocks: Callable[[], Any], factory: str, train_size: int | None, seed: int
) -> Any:  # fmt: skip
    """The empty FAISS index of `factory`, trained on a sample of the vectors if it has to be.

    Training is on the CPU whatever the device, so that lists and codes do not depend on it.
    """
    faiss = import_faiss(factory)
    index = factories.create(faiss, factory, source.dim, seed)
    if index.is_trained:
        return index
    limited = train_size is not None and train_size < source.count
    points = min(train_size or factories.training_size(faiss, index), source.count)
    factories.check_training(faiss, index, factory, points, "train_size is" if limited else "the corpus has")
    drawn = sample(source, blocks(), points, seed)
    try:
        factories.train(faiss, index, drawn, seed)
    except RuntimeError as error:
        raise ConfigError(
            f"{factory} cannot be trained on {points} vectors: {factories.faiss_message(error)}"
        ) from error
    return index


def _advance(progress: Progress | None, block: np.ndarray) -> None:
    if progress is not None:
        progress(len(block))
