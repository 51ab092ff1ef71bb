"""An index that grows while the corpus is still being encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.exact import ExactBackend
from ance_fast.index.faiss_index import FaissBackend
from ance_fast.index.faiss_library import import_faiss
from ance_fast.index.ids import IdTable
from ance_fast.index.index import Index
from ance_fast.index.vectors import normalized


class IndexSink:
    """A sink for `encode_corpus` that adds rows to an index as they come, for factories that need no training.

        sink = IndexSink(store.ids, encoder.dim, factory="HNSW32")
        encode_corpus(encoder, store, out_dir, sinks=[sink])
        index = sink.finish()

    ids: of all documents, in corpus order. factory, metric, device, fingerprint: as for `Index.build`.

    Raises `ConfigError` for a factory that is trained on a sample first (IVF, PQ, CAGRA: build it from the shards) and
    what `Index.build` raises.
    """

    stage = "add"

    def __init__(
        self,
        ids: Any,
        dim: int,
        *,
        factory: str = "Flat",
        metric: str = "ip",
        device: str = "auto",
        devices: Sequence[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if needs_training(factory, dim):
            raise ConfigError(f"{factory} is trained on a sample of the vectors; build it from the finished embeddings")
        nothing = np.empty((0, dim), dtype=np.float32)
        self._index = Index.build(
            nothing, [], factory, metric, device, devices=devices, fingerprint=fingerprint, check_memory=False
        )
        backend = self._index._backend
        if isinstance(backend, ExactBackend | FaissBackend):
            backend.reserve(len(ids))  # it would else grow by copying
        self._ids = ids

    def write(self, start: int, block: np.ndarray) -> None:
        """Add rows start .. start + m - 1, float32 [m, dim]; they have to come in order."""
        if start != len(self._index._backend):
            raise ConfigError(f"rows {start}.. after {len(self._index._backend)} rows; an index takes them in order")
        backend = self._index._backend
        if self._index.metric == "cosine":
            block = normalized(block)
        elif isinstance(backend, FaissBackend) and backend.on_gpu:
            # FAISS only queues its copies from page-locked memory, a slot of the ring for example, and returns.
            block = block.copy()
        backend.add(block)

    def finish(self) -> Index:
        """The index, once every row was added. Raises `ConfigError` if rows are missing."""
        count = len(self._index._backend)
        ids = self._ids.arrow if hasattr(self._ids, "arrow") else self._ids
        if count != len(ids):
            raise ConfigError(f"{count} of {len(ids)} rows were added; the encoding has not come to its end")
        self._index.ids = IdTable.from_ids(ids, count)
        return self._index


def needs_training(factory: str, dim: int) -> bool:
    """Whether an index of `factory` sees a sample of the vectors before the first is added."""
    if factories.is_flat(factory):
        return False
    if factories.cagra_degree(factory) is not None:
        return True
    return not factories.create(import_faiss(factory), factory, dim, 0).is_trained
