"""`Index`: document vectors with string ids, searched by inner product or cosine.

Exact (`Flat`) by default: it needs no training and misses nothing. Every FAISS factory string works as well: graphs
(HNSW) answer single queries fastest, lists (IVF) build fastest, quantisers (PQ) hold the most documents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import open_artifact, staged_artifact
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.backends import Backend, flat_backend, make_backend
from ance_fast.index.faiss_index import FaissBackend
from ance_fast.index.ids import IdTable
from ance_fast.index.result import SearchResult, checked_k, padded
from ance_fast.index.stored import check_fingerprint, read_vectors, versions
from ance_fast.index.vectors import BLOCK_ROWS, VectorSource, prepared_blocks, query_matrix, vector_source

KIND = "index"
METRICS = ("ip", "cosine")
Progress = Callable[[int], None]


class Index:
    """Use `Index.build` or `Index.load`.

    Attributes:
        factory, metric, dim: as built.
        fingerprint: of the encoder that made the vectors, None if not told.
        ids: the document ids, `IdTable`.
    """

    def __init__(
        self, backend: Backend, ids: IdTable, *, factory: str, metric: str, dim: int, fingerprint: str | None
    ) -> None:
        self._backend = backend
        self.ids = ids
        self.factory = factory
        self.metric = metric
        self.dim = dim
        self.fingerprint = fingerprint

    @classmethod
    def build(
        cls,
        embeddings: Any,
        ids: Any = None,
        factory: str = "Flat",
        metric: str = "ip",
        device: str = "auto",
        *,
        fingerprint: str | None = None,
        train_size: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Index:
        """Index document vectors.

        Args:
            embeddings: [n, dim] NumPy array or torch tensor of a floating type (stored as float32), or embedding shards
                (an object with `ids` that iterates over arrays [m, dim]); read in slices of 65,536 rows.
            ids: n distinct strings; None takes those of the shards, or "0", "1", ....
            factory: any FAISS `index_factory` string: "Flat" (exact), "HNSW32", "IVF1024,Flat", "IVF1024,PQ16", ....
            metric: "ip", or "cosine": vectors and queries are L2-normalised; zero vectors stay zero and score 0.
            device: "auto" (FAISS on a GPU if it sees one, else on the CPU), "cpu", "cuda" or "cuda:N". Flat on "cuda"
                without a GPU build of FAISS, and anywhere without FAISS, is searched by torch.
            fingerprint: of the encoder; `load` compares it.
            train_size: vectors to train IVF and PQ on, a sample drawn by `seed`; None: 256 a list, at least 65,536.
            progress: called after each slice with the rows it had (`progress_bar` yields such a function).

        Training is deterministic in `seed`; HNSW graphs are on one thread only (FAISS inserts concurrently).

        Raises:
            ConfigError: bad shape, dtype, ids, metric, factory or device; NaN or infinity (names the document); fewer
                vectors than the factory must be trained on.
            MissingDependencyError: a factory other than Flat without FAISS.
        """
        if metric not in METRICS:
            raise ConfigError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
        source = vector_source(embeddings)
        table = IdTable.from_ids(ids if ids is not None else source.ids, source.count)
        backend = make_backend(source, table, factory, metric, device, train_size, seed)
        index = cls(
            backend,
            IdTable.from_ids(None, 0),
            factory=factory,
            metric=metric,
            dim=source.dim,
            fingerprint=fingerprint or source.fingerprint,
        )
        index._append(source, table, progress)
        return index

    def add(self, embeddings: Any, ids: Any = None, *, progress: Progress | None = None) -> None:
        """Append documents. Arguments and errors as for `build`; bad input adds nothing; nothing is trained again.

        Without ids, the new documents are numbered on from the present count.
        """
        source = vector_source(embeddings)
        if source.dim != self.dim:
            raise ConfigError(f"the vectors have {source.dim} dimensions, the index has {self.dim}")
        given = ids if ids is not None else source.ids
        table = IdTable.from_ids(given, source.count, start=len(self))
        self.ids.extended(table)
        for _ in prepared_blocks(source, "ip", lambda row: repr(table[row])):
            pass  # every block is checked before the first is added
        self._append(source, table, progress)

    def search(
        self,
        query_embeddings: Any,
        k: int,
        *,
        exclude: Collection[str] | None = None,
        allow: Collection[str] | None = None,
        params: Mapping[str, int] | None = None,
    ) -> SearchResult:
        """The k best documents of each query.

        Args:
            query_embeddings: [dim] or [n, dim], n may be 0.
            k: at least 1; past the number of documents the result is padded with -inf and -1.
            exclude: document ids never returned; unknown ones are ignored.
            allow: the only document ids returned (less `exclude`).
            params: {"nprobe": lists visited} for IVF (default: one in 16, at least 8), {"efSearch": candidates} for
                HNSW (default: max(64, 2 k)); both defaults grow when `exclude` and `allow` leave few documents.

        Flat selects and orders by (-score, position), ties at the k-th place included (FAISS on a GPU picks any).
        Other indexes return what they find in that order, perhaps fewer than k.

        Raises:
            ConfigError: k, dimension, NaN, an unknown id in `allow`, or a parameter the index does not have.
        """
        k = checked_k(k)
        self._backend.check_params(params or {})
        queries = query_matrix(query_embeddings, self.dim, self.metric)
        mask = self._mask(exclude, allow)
        reachable = min(k, len(self) if mask is None else int(mask.sum()))
        if reachable and len(queries):
            scores, positions = self._backend.search(queries, reachable, mask, params or {})
        else:
            scores, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        return SearchResult(*padded(scores, positions, k), self.ids)

    def reconstruct(self, rows: Any) -> np.ndarray:
        """The stored vectors of `rows` (integers), float32 [len(rows), dim]; normalised if the metric is cosine.

        Raises `ConfigError` for an index other than Flat, which keeps no exact vectors, and for rows out of range.
        """
        if not factories.is_flat(self.factory):
            raise ConfigError(f"{self.factory} does not keep its vectors in row order; only Flat reconstructs them")
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ConfigError(f"rows {wanted.min()}..{wanted.max()} asked for, the index has {len(self)}")
        return self._backend.reconstruct(wanted)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the directory `path`: vectors.npy (Flat) or index.faiss, ids.arrow, manifest.json; whole or not at all.

        An index there before is replaced. Raises `ArtifactError` if something else is there or writing fails.
        """
        manifest = {
            "factory": self.factory,
            "metric": self.metric,
            "dim": self.dim,
            "count": len(self),
            "dtype": "float32",
            "fingerprint": self.fingerprint,
            "backend": self.backend,
            "versions": versions(),
        }
        try:
            with staged_artifact(path, KIND, manifest) as staging:
                self._backend.save(staging)
                self.ids.write(staging / "ids.arrow")
        except (OSError, RuntimeError) as error:
            reason = factories.faiss_message(error)
            raise ArtifactError(f"{path}: the index was not saved ({reason}); is the disk full?") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, fingerprint: str | None = None, device: str = "auto") -> Index:
        """Open what `save` wrote, every checksum compared.

        Args:
            fingerprint: of the encoder the queries will come from; an index of another encoder is refused.

        Raises:
            ArtifactError: missing, incomplete, damaged, or of another encoder.
            MissingDependencyError: an index other than Flat without FAISS.
        """
        root = Path(path)
        manifest = open_artifact(root, KIND)
        try:
            factory, metric, dim, count = (manifest[key] for key in ("factory", "metric", "dim", "count"))
            recorded = manifest["fingerprint"]
        except KeyError as error:
            raise ArtifactError(f"{root / 'manifest.json'}: no entry {error}; build the index again") from error
        check_fingerprint(root, recorded, fingerprint)
        ids = IdTable.read(root / "ids.arrow")
        backend: Backend
        if factories.is_flat(factory):
            backend = flat_backend(dim, device)
            vectors = read_vectors(root / "vectors.npy", dim)
            for start in range(0, len(vectors), BLOCK_ROWS):
                backend.add(np.ascontiguousarray(vectors[start : start + BLOCK_ROWS]))
        else:
            backend = FaissBackend.load(factory, root / "index.faiss", device)
        if not len(backend) == len(ids) == count:
            raise ArtifactError(
                f"{root}: {len(backend)} vectors, {len(ids)} ids and a count of {count}; build the index again"
            )
        return cls(backend, ids, factory=factory, metric=metric, dim=dim, fingerprint=recorded)

    @property
    def backend(self) -> str:
        """Who searches: "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs" or "torch"."""
        return self._backend.name

    @property
    def ntotal(self) -> int:
        """Number of documents."""
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Index({self.factory}, {self.metric}, {len(self)} x {self.dim}, {self.backend})"

    def _append(self, source: VectorSource, table: IdTable, progress: Progress | None) -> None:
        for block in prepared_blocks(source, self.metric, lambda row: repr(table[row])):
            self._backend.add(block)
            if progress is not None:
                progress(len(block))
        self.ids = self.ids.extended(table)

    def _mask(self, exclude: Collection[str] | None, allow: Collection[str] | None) -> np.ndarray | None:
        if not exclude and allow is None:
            return None
        for name, chosen in (("exclude", exclude), ("allow", allow)):
            if isinstance(chosen, str):
                raise ConfigError(f"{name} is the string {chosen!r}; give a collection of document ids")
        mask = np.full(len(self), allow is None)
        if allow is not None:
            rows = self.ids.find(allow)
            unknown = next((name for name in allow if name not in rows), None)
            if unknown is not None:
                raise ConfigError(f"allow names the document {unknown!r}, which is not in the index")
            mask[list(rows.values())] = True
        if exclude:
            mask[list(self.ids.find(exclude).values())] = False
        return mask
