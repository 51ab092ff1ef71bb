"""The FAISS side of `Index`: one inner-product index of any factory string, on the CPU or one GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.exact import exact_top_k
from ance_fast.index.faiss_library import faiss_kind, import_faiss
from ance_fast.index.result import ranked

# Flat: neighbours fetched beyond k, so that a tie at the k-th place is usually seen whole.
TIE_MARGIN = 16
# FAISS' limit for the neighbours of one query on a GPU.
GPU_MAX_K = 2048


class FaissBackend:
    """Wraps a FAISS index; row numbers are the order of adding."""

    def __init__(self, factory: str, index: Any, device: str) -> None:
        self._faiss = import_faiss(factory)
        self._factory = factory
        layers = list(factories.layers(self._faiss, index))
        self._refined = isinstance(layers[0], self._faiss.IndexRefine)
        self._nlist = factories.lists(self._faiss, index)
        self._hnsw = any(isinstance(layer, self._faiss.IndexHNSW) for layer in layers)
        self._index = self._on_device(index, device)
        self.on_gpu = self._index is not index
        self.name = (faiss_kind() or "faiss-cpu") if self.on_gpu else "faiss-cpu"
        # Others (product quantisers without lists, NSG, refinement, GPU indexes) are asked for more and filtered after.
        selectable = ("IndexFlat", "IndexIVF", "IndexHNSW", "IndexScalarQuantizer")
        types = tuple(getattr(self._faiss, name) for name in selectable)
        searched = next(layer for layer in layers if not isinstance(layer, self._faiss.IndexPreTransform))
        self._selects = isinstance(searched, types) and not self.on_gpu

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def load(cls, factory: str, path: Path, device: str) -> FaissBackend:
        """Read the file `save` made. Raises `ArtifactError` if FAISS cannot."""
        faiss = import_faiss(factory)
        try:
            return cls(factory, faiss.read_index(str(path)), device)
        except RuntimeError as error:
            reason = factories.faiss_message(error)
            raise ArtifactError(
                f"{path}: FAISS {faiss.__version__} cannot read it ({reason}); build the index again"
            ) from error

    def save(self, directory: Path) -> None:
        """Write vectors.npy for Flat, which any backend reads, and index.faiss for everything else."""
        index = self._faiss.index_gpu_to_cpu(self._index) if self.on_gpu else self._index
        if factories.is_flat(self._factory):
            np.save(directory / "vectors.npy", self._flat_vectors(index))
        else:
            self._faiss.write_index(index, str(directory / "index.faiss"))

    def add(self, block: np.ndarray) -> None:
        """Append float32 [m, dim]."""
        try:
            self._index.add(block)
        except RuntimeError as error:
            raise ConfigError(f"{self._factory} cannot add vectors: {factories.faiss_message(error)}") from error

    def search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best k rows of `queries` [n, dim] among those where `mask` (bool [count]) is set, ranked, -1 past the end.

        Raises:
            ConfigError: a parameter this index does not have, or more neighbours than a GPU index returns.
        """
        self.check_params(params)
        allowed = len(self) if mask is None else int(mask.sum())
        exact = factories.is_flat(self._factory)
        fetch = min(k + TIE_MARGIN, allowed) if exact else k
        if mask is not None and not self._selects:
            fetch = min(fetch + len(self) - allowed, len(self))
        if self.on_gpu and fetch > GPU_MAX_K:
            raise ConfigError(
                f"FAISS on a GPU returns at most {GPU_MAX_K} neighbours and this search needs {fetch} "
                "(k, a margin, and every excluded document); load the index with device='cpu'"
            )
        scores, positions = self._raw_search(queries, fetch, mask, params)
        if mask is not None and not self._selects:
            positions = np.where((positions >= 0) & mask[positions], positions, -1)
        scores, positions = ranked(scores, positions)
        if exact and fetch < allowed and not self.on_gpu:
            self._resolve_ties(queries, k, mask, scores, positions)
        return scores[:, :k], positions[:, :k]

    def check_params(self, params: Mapping[str, int]) -> None:
        """Raises `ConfigError` on a parameter this index does not have, or that is not a positive whole number."""
        valid = ["nprobe"] if self._nlist else ["efSearch"] if self._hnsw else []
        for key, value in params.items():
            if key not in valid:
                raise ConfigError(
                    f"search parameter {key!r} does not apply to {self._factory}; it takes {', '.join(valid) or 'none'}"
                )
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ConfigError(f"search parameter {key} is {value!r}; it must be a whole number of at least 1")

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of `rows`, float32 [len(rows), dim]; Flat only."""
        vectors: np.ndarray = self._index.reconstruct_batch(rows)
        return vectors

    def _raw_search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        search_params = self._search_params(k, mask, params)
        try:
            scores, positions = self._index.search(queries, k, params=search_params)
        except RuntimeError as error:
            raise ConfigError(f"{self._factory} cannot search so: {factories.faiss_message(error)}") from error
        return scores, positions

    def _search_params(self, k: int, mask: np.ndarray | None, params: Mapping[str, int]) -> Any:
        chosen: dict[str, Any] = dict(params)
        if mask is not None and self._selects:
            # The selector keeps the bitmap alive, and the parameters the selector.
            chosen["sel"] = self._faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        share = 1.0 if mask is None else max(1, int(mask.sum())) / len(self)
        if self._nlist:
            chosen.setdefault("nprobe", default_nprobe(self._nlist, share))
            found = self._faiss.SearchParametersIVF(**chosen)
        elif self._hnsw:
            chosen.setdefault("efSearch", default_ef_search(k, share, len(self)))
            found = self._faiss.SearchParametersHNSW(**chosen)
        else:
            found = self._faiss.SearchParameters(**chosen) if chosen else None
        if self._refined and found is not None:
            factor = self._faiss.downcast_index(self._index).k_factor
            return self._faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=found)
        return found

    def _resolve_ties(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, scores: np.ndarray, positions: np.ndarray
    ) -> None:
        """Search exactly for queries whose k-th score goes on past the last neighbour fetched: FAISS picks any."""
        tied = np.flatnonzero(scores[:, k - 1] == scores[:, -1])
        if not len(tied):
            return
        import torch

        vectors = torch.from_numpy(self._flat_vectors(self._index))
        scores[tied, :k], positions[tied, :k] = exact_top_k(queries[tied], vectors, k, mask)

    def _flat_vectors(self, index: Any) -> np.ndarray:
        """The matrix inside a CPU Flat index, float32 [count, dim], without a copy."""
        if not index.ntotal:
            return np.empty((0, index.d), dtype=np.float32)
        flat = self._faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
        matrix: np.ndarray = flat.reshape(index.ntotal, index.d)
        return matrix

    def _on_device(self, index: Any, device: str) -> Any:
        """`index` on a GPU when asked for, or when "auto" and FAISS has one and a GPU form of it."""
        gpus = self._faiss.get_num_gpus() if hasattr(self._faiss, "StandardGpuResources") else 0
        if device == "cpu" or (device == "auto" and not gpus):
            return index
        if not gpus:
            raise ConfigError(
                f"device {device!r} asked for, but {faiss_kind()} sees no GPU; use device='cpu' or "
                "pip install 'ance_fast[gpu]' in place of faiss-cpu"
            )
        number = int(device.partition(":")[2] or 0)
        try:
            return self._faiss.index_cpu_to_gpu(self._faiss.StandardGpuResources(), number, index)
        except RuntimeError as error:
            if device == "auto":
                return index
            raise ConfigError(
                f"{self._factory} does not run on {device}: {factories.faiss_message(error)}; use device='cpu'"
            ) from error


def new_backend(factory: str, dim: int, device: str, seed: int, training: Any) -> FaissBackend:
    """Create and, where the index needs it, train.

    Args:
        training: called with (FAISS module, untrained index); checks and returns the sample, float32 [m, dim].
            Training is on the CPU whatever the device, so that lists and codes do not depend on it.
    """
    faiss = import_faiss(factory)
    index = factories.create(faiss, factory, dim, seed)
    if not index.is_trained:
        sample = training(faiss, index)
        try:
            factories.train(faiss, index, sample, seed)
        except RuntimeError as error:
            raise ConfigError(
                f"{factory} cannot be trained on {len(sample)} vectors: {factories.faiss_message(error)}"
            ) from error
    return FaissBackend(factory, index, device)


def default_nprobe(nlist: int, allowed_share: float = 1.0) -> int:
    """Lists visited when `params` names none: one in sixteen, at least 8; more the fewer documents are allowed."""
    return min(nlist, math.ceil(max(8, nlist // 16) / allowed_share))


def default_ef_search(k: int, allowed_share: float, count: int) -> int:
    """Candidates HNSW keeps when `params` names none: max(64, 2 k).

    More the fewer documents are allowed, because the walk goes through the others too.
    """
    return min(math.ceil(max(64, 2 * k) / allowed_share), max(count, 2 * k))
