"""The FAISS side of `Index`: one inner-product index of any factory string but Flat, on the CPU or on GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.faiss_bulk import bulk_search, prefers_bulk, searches_in_bulk
from ance_fast.index.faiss_gpu import GPU_MAX_K, gpu_numbers, to_gpus
from ance_fast.index.faiss_library import faiss_kind, import_faiss
from ance_fast.index.result import ranked
from ance_fast.index.selection import Selection

LABELS = "labels.npy"


class FaissBackend:
    """Wraps a trained FAISS index.

    labels: int64 [count], rising: the number FAISS knows each row by. None as long as nothing was removed: then they
    are the rows themselves.
    """

    def __init__(
        self, factory: str, index: Any, devices: Sequence[str] = ("cpu",), labels: np.ndarray | None = None
    ) -> None:
        self._faiss = import_faiss(factory)
        self._factory = factory
        layers = list(factories.layers(self._faiss, index))
        self._refined = isinstance(layers[0], self._faiss.IndexRefine)
        self._nlist = factories.lists(self._faiss, index)
        self._hnsw = any(isinstance(layer, self._faiss.IndexHNSW) for layer in layers)
        self._index, self.on_gpu = self._placed(index, devices)
        self.name = (faiss_kind() or "faiss-cpu") if self.on_gpu else "faiss-cpu"
        # Others (product quantisers without lists, NSG, refinement, GPU indexes) are asked for more and filtered after.
        selectable = ("IndexFlat", "IndexIVF", "IndexHNSW", "IndexScalarQuantizer")
        types = tuple(getattr(self._faiss, name) for name in selectable)
        searched = next(layer for layer in layers if not isinstance(layer, self._faiss.IndexPreTransform))
        self._selects = isinstance(searched, types) and not self.on_gpu
        self._edits = isinstance(searched, self._faiss.IndexIVF) and not self.on_gpu
        self._bulk = searches_in_bulk(self._faiss, layers[0]) and not self.on_gpu
        self._labels = labels

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def load(cls, factory: str, directory: Path, devices: Sequence[str]) -> FaissBackend:
        """Read what `save` wrote. Raises `ArtifactError` if FAISS cannot."""
        faiss = import_faiss(factory)
        path = directory / "index.faiss"
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            reason = factories.faiss_message(error)
            raise ArtifactError(
                f"{path}: FAISS {faiss.__version__} cannot read it ({reason}); build the index again"
            ) from error
        labels = np.load(directory / LABELS, allow_pickle=False) if (directory / LABELS).exists() else None
        return cls(factory, index, devices, labels)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write index.faiss, and labels.npy if documents were removed."""
        index = self._faiss.index_gpu_to_cpu(self._index) if self.on_gpu else self._index
        self._faiss.write_index(index, str(directory / "index.faiss"))
        if self._labels is not None:
            np.save(directory / LABELS, self._labels)
        return {"dtype": "float32"}

    def reserve(self, count: int) -> None:
        """Allocate room for `count` vectors where they lie in one array, which otherwise doubles as it grows."""
        for layer in factories.stored_layers(self._faiss, self._index) if not self.on_gpu else ():
            if isinstance(layer, self._faiss.IndexFlatCodes):
                layer.codes.resize(count * layer.code_size)
                layer.codes.resize(0)  # the memory stays

    def add(self, block: np.ndarray) -> None:
        """Append float32 [m, dim]."""
        try:
            if self._labels is None:
                self._index.add(block)
            else:
                start = 1 + int(self._labels[-1]) if len(self._labels) else 0
                fresh = np.arange(start, start + len(block), dtype=np.int64)
                self._index.add_with_ids(block, fresh)
                self._labels = np.concatenate([self._labels, fresh])
        except RuntimeError as error:
            raise ConfigError(f"{self._factory} cannot add vectors: {factories.faiss_message(error)}") from error

    def replace(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Put float32 `vectors` [m, dim] into `rows` (int64 [m], distinct); the lists stay as they were trained."""
        self._refuse_edits("replace")
        labels = rows if self._labels is None else self._labels[rows]
        self._index.remove_ids(labels)
        self._index.add_with_ids(vectors, labels)

    def remove(self, rows: np.ndarray) -> None:
        """Take `rows` (int64, distinct) out; the rows behind them move up."""
        self._refuse_edits("remove")
        labels = np.arange(len(self), dtype=np.int64) if self._labels is None else self._labels
        self._index.remove_ids(labels[rows])
        self._labels = np.delete(labels, rows)

    def search(
        self, queries: np.ndarray, k: int, selection: Selection, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows found of each of `queries` [n, dim] that `selection` allows, ranked, -1 past the end.

        Documents for all queries are left out by FAISS where it can; others are found and dropped, so as many more are
        fetched.

        Raises:
            ConfigError: a parameter this index does not have, or more neighbours than a GPU index returns.
        """
        self.check_params(params)
        mask, count = selection.allow, len(self)
        fetch = k + selection.most_excluded
        if mask is not None and not self._selects:
            fetch += count - selection.allowed
        fetch = min(fetch, count)
        if self.on_gpu and fetch > GPU_MAX_K:
            raise ConfigError(
                f"FAISS on a GPU returns at most {GPU_MAX_K} neighbours and this search needs {fetch} (k, and every "
                "excluded document); Flat on a GPU has no such limit, nor has this index loaded with device='cpu'"
            )
        scores, positions = self._raw_search(queries, fetch, mask, params)
        if self._labels is not None:
            positions = np.where(positions < 0, -1, np.searchsorted(self._labels, positions))
        if mask is not None and not self._selects:
            positions = np.where((positions >= 0) & mask[positions], positions, -1)
        scores, positions = ranked(scores, selection.without_exceptions(positions))
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
        """Raises `ConfigError`: what is kept of the vectors is not what was given."""
        raise ConfigError(f"{self._factory} does not keep its vectors in row order; only Flat reconstructs them")

    def _raw_search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            if self._bulk and mask is None and prefers_bulk(self._index, len(queries), k):
                nprobe = params.get("nprobe", default_nprobe(self._nlist))
                return bulk_search(self._faiss, self._index, queries, k, min(nprobe, self._nlist))
            scores, labels = self._index.search(queries, k, params=self._search_params(k, mask, params))
        except RuntimeError as error:
            raise ConfigError(f"{self._factory} cannot search so: {factories.faiss_message(error)}") from error
        return scores, labels

    def _search_params(self, k: int, mask: np.ndarray | None, params: Mapping[str, int]) -> Any:
        chosen: dict[str, Any] = dict(params)
        if mask is not None and self._selects:
            # The selector keeps the bitmap alive, and the parameters the selector.
            chosen["sel"] = self._faiss.IDSelectorBitmap(np.packbits(self._by_label(mask), bitorder="little"))
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

    def _by_label(self, mask: np.ndarray) -> np.ndarray:
        if self._labels is None:
            return mask
        spread = np.zeros(1 + int(self._labels[-1]), dtype=bool)
        spread[self._labels] = mask
        return spread

    def _refuse_edits(self, what: str) -> None:
        if not self._edits:
            raise ConfigError(
                f"{self._factory}{' on a GPU' if self.on_gpu else ''} cannot {what} documents (Flat and IVF on the CPU "
                "can); build the index again"
            )

    def _placed(self, index: Any, devices: Sequence[str]) -> tuple[Any, bool]:
        """`index` on the GPUs asked for; for "auto", on the GPU FAISS sees if it has a form of it there."""
        if isinstance(index, getattr(self._faiss, "GpuIndex", ())):
            return index, True
        numbers = gpu_numbers(self._faiss, devices)
        if not numbers:
            return index, False
        try:
            return to_gpus(self._faiss, index, self._factory, numbers), True
        except ConfigError:
            if tuple(devices) == ("auto",):
                return index, False
            raise


def default_nprobe(nlist: int, allowed_share: float = 1.0) -> int:
    """Lists visited when `params` names none: one in sixteen, at least 8; more the fewer documents are allowed."""
    return min(nlist, math.ceil(max(8, nlist // 16) / allowed_share))


def default_ef_search(k: int, allowed_share: float, count: int) -> int:
    """Candidates HNSW keeps when `params` names none: max(64, 2 k).

    More the fewer documents are allowed, because the walk goes through the others too.
    """
    return min(math.ceil(max(64, 2 * k) / allowed_share), max(count, 2 * k))
