"""`Index`: document vectors with string ids, searched by inner product or cosine.

Exact (`Flat`) by default: it needs no training and misses nothing. Every FAISS factory string works as well: graphs
(HNSW) answer single queries fastest, lists (IVF) build fastest, quantisers (PQ) hold the most documents.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import open_artifact, staged_artifact
from ance_fast.data.chunked_documents import DocumentGroups, groups_by_id
from ance_fast.data.text_record import TextRecord, check_text_record
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index import factory as factories
from ance_fast.index import memory
from ance_fast.index.backends import Backend, Progress, attached_backend, build_backend, stored_dtype
from ance_fast.index.devices import chosen_devices
from ance_fast.index.documents import search_documents
from ance_fast.index.ids import IdTable
from ance_fast.index.memory import MemoryEstimate, estimate_memory
from ance_fast.index.merged import MergedBackend
from ance_fast.index.result import SearchResult, checked_k, padded
from ance_fast.index.selection import make_selection
from ance_fast.index.stored import check_fingerprint, read_backend, versions
from ance_fast.index.vectors import VectorSource, prepared_blocks, query_matrix, vector_source

logger = logging.getLogger(__name__)

KIND = "index"
METRICS = ("ip", "cosine")


class Index:
    """Use `Index.build`, `Index.over`, `Index.load` or `Index.merged`.

    Attributes:
        factory, metric, dim: as built.
        fingerprint: of the encoder that made the vectors, None if not told.
        ids: the document ids, `IdTable`.
        document_separator: where rows are chunks, what stands between a document's id and the chunk's in `ids`;
            embedding shards say so, `set_documents` does for others. None: each row is a document.
        text_record: what made tokens of the documents, None if not known; embedding shards say so.
    """

    def __init__(
        self,
        backend: Backend,
        ids: IdTable,
        *,
        factory: str,
        metric: str,
        dim: int,
        fingerprint: str | None,
        document_separator: str | None = None,
        text_record: TextRecord | None = None,
    ) -> None:
        self._backend = backend
        self.ids = ids
        self.factory = factory
        self.metric = metric
        self.dim = dim
        self.fingerprint = fingerprint
        self.document_separator = document_separator
        self.text_record = text_record
        self._documents: tuple[IdTable, DocumentGroups] | None = None

    @classmethod
    def build(
        cls,
        embeddings: Any,
        ids: Any = None,
        factory: str = "Flat",
        metric: str = "ip",
        device: str = "auto",
        *,
        devices: Sequence[str] | None = None,
        dtype: str | None = None,
        fingerprint: str | None = None,
        train_size: int | None = None,
        seed: int = 0,
        check_memory: bool = True,
        progress: Progress | None = None,
    ) -> Index:
        """Index document vectors.

        The vectors are read in slices of at most 65,536 rows and held once; what this takes is logged before it begins.

        Args:
            embeddings: [n, dim] NumPy array or torch tensor of a floating type, or embedding shards (an object with
                `ids` that iterates over arrays [m, dim]).
            ids: n distinct strings; None takes those of the shards, or "0", "1", ....
            factory: "Flat" (exact), any FAISS `index_factory` string ("HNSW32", "IVF1024,Flat", "IVF1024,PQ16", ...),
                or "CAGRA" (a graph of degree 64; "CAGRA32": 32), which needs FAISS with cuVS.
            metric: "ip", or "cosine": vectors and queries are L2-normalised; zero vectors stay zero and score 0.
            device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
            devices: several in place of `device`: each holds an equal part of the vectors, searched at the same time.
            dtype: what Flat stores. None keeps float16 vectors as they are (but not for "cosine") and makes others
                float32. Scores are float32; a GPU rounds queries to float16 when the vectors are.
            fingerprint: of the encoder; `load` compares it.
            train_size: vectors to train IVF and PQ on, a sample drawn by `seed`; None: 256 a list, at least 65,536.
            check_memory: refuse what does not fit into the memory available.
            progress: called after each slice with the rows it had (`progress_bar` yields such a function), and with 0
                when training is over.

        Training is deterministic in `seed`; HNSW graphs are on one thread only (FAISS inserts concurrently).

        Raises:
            ConfigError: bad shape, dtype, ids, metric, factory or device; NaN or infinity (names the document); fewer
                vectors than the factory must be trained on; more memory than there is.
            MissingDependencyError: a factory other than Flat without FAISS.

        Relations: `Index.over` searches vectors where they are, exactly.
        """
        _check_metric(metric)
        places = chosen_devices(device, devices)
        source = vector_source(embeddings)
        table = IdTable.from_ids(ids if ids is not None else source.ids, source.count)
        expected = estimate_memory(
            factory, source.count, source.dim, dtype=stored_dtype(source, metric, dtype), train_size=train_size
        )
        if source.count:  # none yet: who fills it has said what to expect
            logger.info("%s over %d x %d: about %s", factory, source.count, source.dim, expected)
        if check_memory:
            memory.check_memory(expected, factory, source.count, source.dim, places)
        backend = build_backend(source, table, factory, metric, places, dtype, train_size, seed, progress)
        name = fingerprint or source.fingerprint
        return cls(
            backend,
            table,
            factory=factory,
            metric=metric,
            dim=source.dim,
            fingerprint=name,
            document_separator=source.document_separator,
            text_record=source.text_record,
        )

    @classmethod
    def over(
        cls,
        embeddings: Any,
        ids: Any = None,
        metric: str = "ip",
        device: str = "auto",
        *,
        devices: Sequence[str] | None = None,
        fingerprint: str | None = None,
        check: bool = True,
        progress: Progress | None = None,
    ) -> Index:
        """Exact search over vectors where they are: in mapped files (embedding shards), an array, or a device tensor.

        Nothing is copied. Of mapped files one tile at a time is in memory, so the corpus may be larger than it; saving
        links the files. A change of the array or tensor is a change of the index, and `replace` writes into it.

        Args:
            embeddings, ids, metric, device, devices, fingerprint: as for `build`; float32 or float16 (bfloat16 on a
                device). A tensor is searched on its own device. For "cosine" rows are normalised as they are searched.
            check: read everything once to find NaN and infinity; without, vectors with NaN are never returned.
            progress: called after each slice checked with the rows it had.

        Raises `ConfigError` as `build` does.
        """
        _check_metric(metric)
        source = vector_source(embeddings)
        table = IdTable.from_ids(ids if ids is not None else source.ids, source.count)
        backend = attached_backend(source, metric, chosen_devices(device, devices))
        if len(backend) != source.count:
            raise ConfigError(f"the shards hold {len(backend)} vectors for {source.count} ids; encode the corpus again")
        for block in prepared_blocks(source, "ip", lambda row: repr(table[row])) if check else ():
            if progress is not None:
                progress(len(block))
        name = fingerprint or source.fingerprint
        return cls(
            backend,
            table,
            factory="Flat",
            metric=metric,
            dim=source.dim,
            fingerprint=name,
            document_separator=source.document_separator,
            text_record=source.text_record,
        )

    @classmethod
    def merged(cls, indexes: Sequence[Index]) -> Index:
        """One index over all documents of `indexes`, which stay as they are; exact if they are (FAISS: IndexShards).

        Documents are numbered in the order of `indexes`. What is changed or added in one of them later is not seen.

        Raises `ConfigError` for no index, for another dimension, metric or encoder, and for an id in two of them.
        """
        if not indexes:
            raise ConfigError("there are no indexes to merge")
        first = indexes[0]
        for number, other in enumerate(indexes):
            for what in ("dim", "metric", "fingerprint", "document_separator", "text_record"):
                mine, theirs = getattr(first, what), getattr(other, what)
                unknown = what == "text_record" and None in (mine, theirs)
                if mine != theirs and not unknown:
                    name = {"fingerprint": "encoder", "text_record": "text rules"}.get(what, what)
                    raise ConfigError(f"index 0 is of {name} {mine}, index {number} of {theirs}; they do not compare")
        kinds = dict.fromkeys(index.factory for index in indexes)
        return cls(
            MergedBackend([index._backend for index in indexes]),
            IdTable.joined([index.ids for index in indexes]),
            factory=next(iter(kinds)) if len(kinds) == 1 else f"merged({'; '.join(kinds)})",
            metric=first.metric,
            dim=first.dim,
            fingerprint=first.fingerprint,
            document_separator=first.document_separator,
            text_record=next((index.text_record for index in indexes if index.text_record is not None), None),
        )

    @staticmethod
    def estimate(
        factory: str, count: int, dim: int, *, dtype: str = "float32", train_size: int | None = None
    ) -> MemoryEstimate:
        """Bytes of memory and disk that `factory` over `count` vectors of `dim` numbers takes; see `MemoryEstimate`."""
        return estimate_memory(factory, count, dim, dtype=dtype, train_size=train_size)

    def add(self, embeddings: Any, ids: Any = None, *, progress: Progress | None = None) -> None:
        """Append documents. Arguments and errors as for `build`; bad input adds nothing; nothing is trained again.

        Without ids, the new documents are numbered on from the present count.
        """
        source = self._checked_source(embeddings)
        given = ids if ids is not None else source.ids
        table = IdTable.from_ids(given, source.count, start=len(self))
        grown = self.ids.extended(table)
        self._check_all(source, table)
        for block in prepared_blocks(source, self.metric, str):
            self._backend.add(block)
            if progress is not None:
                progress(len(block))
        self.ids = grown

    def replace(self, embeddings: Any, ids: Any = None) -> None:
        """Give documents that are in the index new vectors; their positions stay. Flat and IVF on the CPU.

        ids: of the documents, one a vector, distinct; None takes those of the shards. IVF keeps its trained lists.

        Raises `ConfigError` for an unknown id, for vectors `build` would refuse, for other kinds of index, and for
        vectors that are read-only; nothing is replaced then.
        """
        source = self._checked_source(embeddings)
        given = ids if ids is not None else source.ids
        if given is None:
            raise ConfigError("replace needs the ids of the documents that the vectors are of")
        table = IdTable.from_ids(given, source.count)
        rows = self._rows_of(table.to_list())
        self._check_all(source, table)
        start = 0
        for block in prepared_blocks(source, self.metric, str):
            self._backend.replace(rows[start : start + len(block)], block)
            start += len(block)

    def remove(self, ids: Collection[str]) -> None:
        """Take documents out; those behind them move up, so that the order stays. Flat and IVF on the CPU.

        Raises `ConfigError` for an unknown id, other kinds of index, and vectors that belong to the caller
        (`Index.over`); nothing is removed then.
        """
        if isinstance(ids, str):
            raise ConfigError(f"ids is the string {ids!r}; give a collection of document ids")
        rows = np.sort(self._rows_of(list(dict.fromkeys(ids))))
        if len(rows):
            self._backend.remove(rows)
            self.ids = self.ids.without(rows)

    def search(
        self,
        query_embeddings: Any,
        k: int,
        *,
        exclude: Collection[str] | Sequence[Collection[str]] | None = None,
        exclude_positions: tuple[Any, Any] | None = None,
        allow: Collection[str] | None = None,
        params: Mapping[str, int] | None = None,
    ) -> SearchResult:
        """The k best documents of each query.

        Args:
            query_embeddings: [dim] or [n, dim], n may be 0.
            k: at least 1, without a limit on the CPU and for Flat; past the number of documents the result is padded
                with -inf and -1.
            exclude: document ids never returned, or a sequence of n collections of ids, one for each query (its
                positives, other chunks of its document); unknown ids are ignored.
            exclude_positions: the same by row numbers, CSR: offsets int64 [n + 1], positions int64.
            allow: the only document ids returned (less the excluded ones).
            params: {"nprobe": lists visited} for IVF (default: one in 16, at least 8), {"efSearch": candidates} for
                HNSW (default: max(64, 2 k)); both defaults grow when `exclude` and `allow` leave few documents.

        Flat selects and orders by (-score, position), ties at the k-th place included; excluded documents are passed
        over while it scans. Other indexes return what they find in that order, perhaps fewer than k; for documents
        excluded for single queries, and where FAISS has no filter, they find as many more and drop them. Many
        queries (4,096 and more) go through the long lists of "IVF...,Flat" list by list.

        Raises:
            ConfigError: k, dimension, NaN, an unknown id in `allow`, exclusions that do not fit the queries, or a
                parameter the index does not have.
        """
        k = checked_k(k)
        self._backend.check_params(params or {})
        queries = query_matrix(query_embeddings, self.dim, self.metric)
        selection = make_selection(self.ids, len(queries), exclude, allow, exclude_positions)
        reachable = min(k, selection.allowed)
        if reachable and len(queries):
            scores, positions = self._backend.search(queries, reachable, selection, params or {})
        else:
            scores, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        return SearchResult(*padded(scores, positions, k), self.ids)

    def set_documents(self, separator: str | None, documents: DocumentGroups | None = None) -> None:
        """Say that rows are chunks of documents, which `search_documents` and a saved index then know.

        separator: what stands between a document's id and the chunk's; None: each row is a document. documents: what it
        comes to, where that is known already.
        """
        self.document_separator = separator
        self._documents = None if documents is None else (self.ids, documents)

    def search_documents(
        self,
        query_embeddings: Any,
        k: int,
        *,
        documents: DocumentGroups | None = None,
        exclude_positions: tuple[Any, Any] | None = None,
        params: Mapping[str, int] | None = None,
    ) -> SearchResult:
        """The k best documents of each query where rows are chunks, by the best chunk; of an index without chunks, what
        `search` returns.

        documents: of the rows; None: by `document_separator`, which takes a pass over the ids at the first call. The
        result's positions number these documents. exclude_positions: rows; others as for `search`.
        """
        groups = self._groups() if documents is None else documents
        if groups is None:
            return self.search(query_embeddings, k, exclude_positions=exclude_positions, params=params)
        return search_documents(self, query_embeddings, k, groups, exclude_positions=exclude_positions, params=params)

    def reconstruct(self, rows: Any) -> np.ndarray:
        """The vectors of `rows` (integers), float32 [len(rows), dim]; normalised if the metric is cosine.

        Raises `ConfigError` for an index other than Flat, which keeps no exact vectors, and for rows out of range.
        """
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ConfigError(f"rows {wanted.min()}..{wanted.max()} asked for, the index has {len(self)}")
        return self._backend.reconstruct(wanted)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the directory `path`: vectors*.npy (Flat) or index.faiss, ids.arrow, manifest.json.

        Whole or not at all; an index there before is replaced. Mapped files become hard links where that is possible.

        Raises `ArtifactError` if something else is there or writing fails, `ConfigError` for a merged index.
        """
        manifest = {
            "factory": self.factory,
            "metric": self.metric,
            "dim": self.dim,
            "count": len(self),
            "fingerprint": self.fingerprint,
            "backend": self.backend,
            "versions": versions(),
        }
        if self.document_separator is not None:
            manifest["document_separator"] = self.document_separator
        if self.text_record is not None:
            manifest |= {"tokenizer": self.text_record.tokenizer, "text_preset": self.text_record.preset}
        try:
            with staged_artifact(path, KIND, manifest) as staging:
                manifest |= self._backend.save(staging)
                self.ids.write(staging / "ids.arrow")
        except (OSError, RuntimeError) as error:
            reason = factories.faiss_message(error)
            raise ArtifactError(f"{path}: the index was not saved ({reason}); is the disk full?") from error

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        tokenizer: Any = None,
        device: str = "auto",
        devices: Sequence[str] | None = None,
        in_memory: bool | None = None,
    ) -> Index:
        """Open what `save` wrote, every checksum compared. Flat on the CPU is mapped, not read.

        Args:
            fingerprint: of the encoder the queries will come from; an index of another encoder is refused.
            tokenizer: that encoder's tokenizer of documents; an index of documents cut by other rules is refused.
            device, devices: as for `build`; they need not be those it was built on.
            in_memory: False keeps Flat on disk: a search reads it from there and holds one tile of it, on any device.
                By default that is what an index made by `Index.over` mapped files does.

        Raises:
            ArtifactError: missing, incomplete, damaged, or of another encoder or other text rules.
            ConfigError: `in_memory=False` for an index other than Flat.
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
        texts = TextRecord(manifest["tokenizer"], manifest.get("text_preset")) if "tokenizer" in manifest else None
        check_text_record(root, texts, tokenizer)
        on_disk = bool(manifest.get("on_disk")) if in_memory is None else not in_memory
        if on_disk and not factories.is_flat(factory):
            raise ConfigError(f"{root}: {factory} is searched in memory; only Flat can stay on disk")
        ids = IdTable.read(root / "ids.arrow")
        backend = read_backend(root, manifest, factory, dim, chosen_devices(device, devices), on_disk)
        if not len(backend) == len(ids) == count:
            raise ArtifactError(
                f"{root}: {len(backend)} vectors, {len(ids)} ids and a count of {count}; build the index again"
            )
        return cls(
            backend,
            ids,
            factory=factory,
            metric=metric,
            dim=dim,
            fingerprint=recorded,
            document_separator=manifest.get("document_separator"),
            text_record=texts,
        )

    @property
    def backend(self) -> str:
        """Who searches: "exact" (this package), "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", or "merged"."""
        return self._backend.name

    @property
    def ntotal(self) -> int:
        """Number of documents."""
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Index({self.factory}, {self.metric}, {len(self)} x {self.dim}, {self.backend})"

    def _groups(self) -> DocumentGroups | None:
        """The documents of the rows as they are now."""
        if self.document_separator is None:
            return None
        if self._documents is None or self._documents[0] is not self.ids:
            self._documents = self.ids, groups_by_id(self.ids.arrow, self.document_separator)
        return self._documents[1]

    def _checked_source(self, embeddings: Any) -> VectorSource:
        source = vector_source(embeddings)
        if source.dim != self.dim:
            raise ConfigError(f"the vectors have {source.dim} dimensions, the index has {self.dim}")
        return source

    def _rows_of(self, ids: list[str]) -> np.ndarray:
        found = self.ids.find(ids)
        unknown = next((name for name in ids if name not in found), None)
        if unknown is not None:
            raise ConfigError(f"document {unknown!r} is not in the index")
        return np.array([found[name] for name in ids], dtype=np.int64)

    def _check_all(self, source: VectorSource, table: IdTable) -> None:
        """Read every block once, so that what follows cannot stop half-way for a bad vector."""
        for _ in prepared_blocks(source, "ip", lambda row: repr(table[row])):
            pass


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
