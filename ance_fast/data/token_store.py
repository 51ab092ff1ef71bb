"""The token store: a corpus tokenised once, kept as memory-mapped Arrow shards.

Encoders read tokens straight from the mapping: no padding, no second tokenisation, and a corpus larger than memory
costs only the pages in use. `token_shards` describes the files, `token_build` how they are made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.artifacts import open_artifact
from ance_fast.data.chunked_documents import ChunkedDocuments, StoreDocuments
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.dataset import Dataset
from ance_fast.data.document_batches import from_arrow
from ance_fast.data.document_stream import as_documents
from ance_fast.data.id_column import IdColumn
from ance_fast.data.records import Document
from ance_fast.data.token_build import KIND, Tokenised, build_store, build_table
from ance_fast.data.token_corpus import TokenCorpus
from ance_fast.data.token_import import import_tokens, token_table
from ance_fast.data.token_shards import Recipe, documents_of, read_shard, token_arrays
from ance_fast.data.tokenize import tokenizer_fingerprint
from ance_fast.errors import ArtifactError


class TokenStore:
    """A tokenised corpus: row numbers are positions in corpus order.

    Made by `build` (on disk), `open` or `from_texts` (in memory).
    """

    def __init__(self, batches: list[pa.RecordBatch], manifest: dict[str, Any], path: Path | None = None) -> None:
        self.manifest = manifest
        self.path = path
        self._batches = batches
        self._starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)])
        self.tokenised: Tokenised | None = None
        """Rows and tokens that `build` or `append` tokenised to make this store; None where it was opened."""
        self.shards: list[tuple[np.ndarray, np.ndarray]] = []
        """(values uint16 or int32 [tokens], offsets int32 [rows + 1]) of each shard, as views over the mapping."""
        for batch in batches:
            offsets, values = token_arrays(batch)
            self.shards.append((values, offsets))

    @classmethod
    def build(
        cls,
        corpus: Iterable[Document | tuple[str, str] | str],
        tokenizer: Any,
        path: str | os.PathLike[str],
        *,
        max_length: int,
        prompt: str = "",
        chunks: ChunkRules | None = None,
        num_proc: int = 1,
        shard_rows: int = 65536,
        keep_text: bool = True,
        show_progress: bool = False,
        replace: bool = True,
        accept: Callable[[TokenStore], None] | None = None,
    ) -> TokenStore:
        """Tokenise `corpus` into the store `path` and open it.

        corpus: `Document`s, (id, text) pairs, or texts (numbered from "0"); read once, in order. Or a `TokenCorpus`,
        whose tokens are taken as they are, in `num_proc` threads, and have no texts. Each row holds exactly
        `tokenizer(prompt + document.full_text, truncation=True, max_length=max_length)["input_ids"]`. `keep_text=False`
        leaves titles and texts out. `chunks` cuts documents of more than `max_length` tokens, which is then
        `chunks.length`: a row is a chunk, `DOCUMENT#N`, and `chunked` says of which document. At most `num_proc + 1`
        shards of `shard_rows` documents are in memory, and the files are the same bytes whatever `num_proc`. With
        `num_proc > 1` processes are spawned: call it from a module guarded by `if __name__ == "__main__":`.

        A build that was cut off goes on where it stopped: shards made from equal documents by equal settings are kept.
        If `path` holds this very store already it is opened; if its corpus differs, it is rebuilt from the shards that
        stay equal and replaced. `replace=False` refuses that. `accept` sees the new store before it takes its place: an
        error of this package that it raises leaves what is at `path` as it was.

        Raises `DataError` (empty corpus, duplicate ids, what the corpus itself raises), `ConfigError` (settings),
        `ArtifactError` (`path` holds something else, or a store of another tokenizer, max_length, prompt or
        other chunks), `OSError`.
        """
        checked = None if accept is None else lambda work: accept(cls.open(work, verify=False))
        if isinstance(corpus, TokenCorpus):
            target = import_tokens(
                corpus,
                tokenizer,
                path,
                max_length=max_length,
                prompt=prompt,
                chunks=chunks,
                threads=num_proc,
                show_progress=show_progress,
                replace=replace,
                accept=checked,
            )
            return cls.open(target, verify=False)
        target, tokenised = build_store(
            corpus,
            tokenizer,
            path,
            max_length=max_length,
            prompt=prompt,
            chunks=chunks,
            num_proc=num_proc,
            shard_rows=shard_rows,
            keep_text=keep_text,
            show_progress=show_progress,
            replace=replace,
            accept=checked,
        )
        store = cls.open(target, verify=False)
        store.tokenised = tokenised
        return store

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        prompt: str | None = None,
        chunks: ChunkRules | None = None,
        verify: bool = True,
    ) -> TokenStore:
        """Map the store at `path`. What is given of tokenizer, max_length, prompt and chunks must be what it was built
        with.

        `verify` reads every file once to compare checksums; without it only names, sizes and token offsets are checked.
        Raises `ArtifactError`: missing, incomplete or damaged, or built with something else (the message says both).
        """
        root = Path(path)
        manifest = open_artifact(root, KIND, verify=verify)
        try:
            recipe = Recipe.from_json(manifest)
            names = [shard["file"] for shard in manifest["shards"]]
            rows = [shard["rows"] for shard in manifest["shards"]]
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{root}: its manifest lacks {error}; build the store again") from error
        wanted = {
            "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
            "max_length": max_length,
            "prompt": prompt,
            "chunks": chunks,
        }
        for name, value in wanted.items():
            built = getattr(recipe, name)
            if value is not None and value != built:
                raise ArtifactError(
                    f"{root}: built with {name} {built!r}, opened for {name} {value!r}; "
                    "use what it was built with or build another store"
                )
        batches = [read_shard(root / name, recipe) for name in names]
        if [batch.num_rows for batch in batches] != rows:
            raise ArtifactError(
                f"{root}: shards hold other numbers of rows than the manifest says; build the store again"
            )
        return cls(batches, manifest, root)

    @classmethod
    def append(
        cls,
        path: str | os.PathLike[str],
        documents: Iterable[Document | tuple[str, str] | str],
        tokenizer: Any,
        *,
        num_proc: int = 1,
        show_progress: bool = False,
    ) -> TokenStore:
        """Add `documents` at the end of the store `path` and open it: the rows there were keep their numbers.

        The result is the same, byte for byte, as that of `build` from all documents with the store's settings. Its full
        shards stay the files they are; only new documents and those of a last shard that was not full are tokenised.
        Old documents are read and compared by hash, so add many at once. The new store replaces the old one whole;
        whoever has that open goes on reading it.

        Raises `DataError` (an id that is in the store already or comes twice), `ArtifactError` (no store, one of
        another tokenizer, or one without texts), `OSError`.
        """
        store = cls.open(path, tokenizer=tokenizer, verify=False)
        # Texts without ids are numbered from the first free row, as `build` would have numbered them.
        new = as_documents(documents, first=len(store if store.chunked is None else store.chunked))
        return cls.build(
            chain(store.documents(), new),
            tokenizer,
            path,
            max_length=store.max_length,
            prompt=store.prompt,
            chunks=store.chunks,
            num_proc=num_proc,
            shard_rows=int(store.manifest["shard_rows"]),
            show_progress=show_progress,
        )

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        tokenizer: Any,
        *,
        ids: Sequence[str] | None = None,
        max_length: int,
        prompt: str = "",
        chunks: ChunkRules | None = None,
    ) -> TokenStore:
        """A store in memory, without files: for queries and small corpora. `texts` may be empty.

        Raises `ConfigError` if `ids` and `texts` differ in length, `DataError` for duplicate ids.
        """
        batches, manifest = build_table(texts, tokenizer, ids=ids, max_length=max_length, prompt=prompt, chunks=chunks)
        return cls(batches, manifest)

    @classmethod
    def of_queries(
        cls, dataset: Dataset, ids: Sequence[str], tokenizer: Any, *, max_length: int, prompt: str = ""
    ) -> TokenStore:
        """The queries `ids` of `dataset` in memory: their texts tokenised, or the tokens that the data set brings.

        Raises as `from_texts`, and as `build` for a `TokenCorpus`.
        """
        given = dataset.query_tokens
        if given is None:
            texts = [dataset.queries[query] for query in ids]
            return cls.from_texts(texts, tokenizer, ids=ids, max_length=max_length, prompt=prompt)
        rows = given.ids.positions(list(ids))
        return cls(*token_table(given, rows, tokenizer, max_length=max_length, prompt=prompt))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path or 'in memory')!r}, rows={len(self)}, tokens={self.num_tokens})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself instead of being sent a copy.
        if self.path is None:
            return TokenStore, (self._batches, self.manifest)
        return _reopen, (self.path.absolute(),)

    @cached_property
    def ids(self) -> IdColumn:
        """Document ids in row order."""
        return IdColumn(pa.chunked_array([batch.column("id") for batch in self._batches], pa.large_string()))

    def id(self, row: int) -> str:
        """Document id of a row. Raises `IndexError`."""
        shard, local = self._locate(row)
        found: str = self._batches[shard].column("id")[local].as_py()
        return found

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id, int64 [len(ids)], -1 where unknown; ask for many at once (`IdColumn.positions`)."""
        return self.ids.positions(ids)

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of a row with special tokens, uint16 or int32 [length]: a view. Raises `IndexError`."""
        shard, local = self._locate(row)
        values, offsets = self.shards[shard]
        return values[offsets[local] : offsets[local + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [rows]."""
        pieces = [np.diff(offsets) for _, offsets in self.shards]
        return np.concatenate(pieces).astype(np.int32) if pieces else np.zeros(0, dtype=np.int32)

    @property
    def chunks(self) -> ChunkRules | None:
        """How documents were cut into chunks, each a row; None where a row is a document."""
        return ChunkRules.from_json(self.manifest.get("chunks"))

    @cached_property
    def chunked(self) -> ChunkedDocuments | None:
        """Which rows are chunks of which document; None where a row is a document."""
        if self.chunks is None:
            return None
        numbers = [batch.column("chunk").to_numpy() for batch in self._batches]
        return ChunkedDocuments.from_chunks(np.concatenate(numbers), self.lengths, self.ids.arrow)

    @property
    def corpus(self) -> TokenStore | StoreDocuments:
        """What is retrieved: the documents of rows that are chunks, else the rows."""
        return self if self.chunked is None else StoreDocuments(self, self.chunked)

    def document(self, row: int) -> Document:
        """The document of a row, or of which it is a chunk. Raises `IndexError`, and `ArtifactError` if texts were not
        kept."""
        shard, local = self._locate(row)
        self._require_texts()
        batch = self._batches[shard]
        # A document's text lies in the row of its first chunk.
        chunk = 0 if self.chunks is None else batch.column("chunk")[local].as_py()
        return next(from_arrow([documents_of(batch.slice(local - chunk, 1))]))

    def texts(self, rows: np.ndarray) -> list[str]:
        """Texts, without titles, of the documents of these rows (int64), or of which they are chunks, in their order.

        Many at once take a small part of the time that as many calls of `document` would. Raises as it does.
        """
        self._require_texts()
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a token store with {len(self)} rows")
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty(len(rows), dtype=object)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            batch, local = self._batches[shard], rows[places] - self._starts[shard]
            if self.chunks is not None:
                local = local - batch.column("chunk").to_numpy()[local]
            found[places] = batch.column("text").take(pa.array(local)).to_pylist()
        texts: list[str] = found.tolist()
        return texts

    def documents(self) -> Iterator[Document]:
        """Every document, in row order. Raises `ArtifactError` if texts were not kept."""
        self._require_texts()
        return from_arrow(documents_of(batch) for batch in self._batches)

    def _require_texts(self) -> None:
        if not self.manifest["keep_text"]:
            raise ArtifactError(f"{self.path}: built with keep_text=False, so it holds no texts; build it with texts")

    @property
    def max_length(self) -> int:
        """The limit texts were cut at, in tokens."""
        return int(self.manifest["max_length"])

    @property
    def prompt(self) -> str:
        """What was put before every text."""
        return str(self.manifest["prompt"])

    @property
    def tokenizer_fingerprint(self) -> str:
        """`tokenizer_fingerprint` of the tokenizer it was built with."""
        return str(self.manifest["tokenizer"])

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows together."""
        return int(self.manifest["tokens"])

    def _locate(self, row: int) -> tuple[int, int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a token store with {len(self)} rows")
        row = int(row) % len(self)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])


def _reopen(path: Path) -> TokenStore:
    return TokenStore.open(path, verify=False)
