"""Token stores from tokens that others made: nothing is tokenised, records are cut into rows by whole blocks.

Threads do it, since NumPy, hashing and writing leave the interpreter's lock. The files are read twice, once for the
hash that tells whether the store is there already.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.artifacts import open_artifact, refuse_foreign, staged_artifact
from ance_fast.data.chunks import Chunker, ChunkRules
from ance_fast.data.token_build import KIND, refuse_other_recipe, store_manifest
from ance_fast.data.token_corpus import TokenCorpus
from ance_fast.data.token_shards import Recipe, ShardInfo, make_batch, shard_name, write_shard
from ance_fast.data.tokenize import Tokens, token_dtype, tokenizer_fingerprint
from ance_fast.errors import ArtifactError, ConfigError, DataError
from ance_fast.progress import progress_bar

# Tokens, padding included, that a shard's records may have: what one thread holds.
_SHARD_IDS = 1 << 25


def import_tokens(
    corpus: TokenCorpus,
    tokenizer: Any,
    path: str | os.PathLike[str],
    *,
    max_length: int,
    prompt: str = "",
    chunks: ChunkRules | None = None,
    threads: int = 1,
    show_progress: bool = False,
    replace: bool = True,
    accept: Callable[[Path], None] | None = None,
) -> Path:
    """Make the token store `path` of `corpus`, which `tokenizer` must have made, and return its absolute path.

    max_length: of the store, at least that of the records (with `chunks`, of a chunk; the records then are cut as
    documents are). A store of the same tokens that is there already stays; `replace` and `accept` are those of
    `TokenStore.build`.

    Raises `DataError` with file and byte (damaged records, another tokenizer's), `ConfigError` (records longer than
    asked for, a prompt), `ArtifactError` (`path` holds something else, or a store of other settings).
    """
    target = Path(os.path.abspath(path))
    source = _Source(corpus, tokenizer, max_length, prompt, chunks)
    refuse_foreign(target, KIND)
    content = source.content(threads)
    if _is_there(target, source.recipe, content, replace):
        return target
    rows = max(1, min(1 << 16, _SHARD_IDS // corpus.records.length))
    manifest: dict[str, Any] = {}
    with staged_artifact(target, KIND, manifest, accept) as folder:
        parts = [range(start, min(start + rows, len(corpus))) for start in range(0, len(corpus), rows)]
        infos: list[ShardInfo] = []
        with progress_bar("copying", len(corpus), "passages") if show_progress else nullcontext(_unseen) as advance:
            for info, part in zip(_in_order(source, folder, parts, threads), parts, strict=True):
                infos.append(info)
                advance(len(part))
        manifest |= store_manifest(infos, source.recipe, tokenizer, content) | {"shard_rows": rows}
    return target


def token_table(
    corpus: TokenCorpus, rows: np.ndarray, tokenizer: Any, *, max_length: int, prompt: str = ""
) -> tuple[list[pa.RecordBatch], dict[str, Any]]:
    """The record batch and the manifest of a store in memory with these records (int64): see `import_tokens`."""
    source = _Source(corpus, tokenizer, max_length, prompt, None)
    tokens, _ = source.tokens(rows)
    batch = make_batch(source.names(rows), tokens, source.recipe)
    info = ShardInfo(source.recipe, "", "", len(rows), len(tokens.values), tokens.truncated)
    digest = hashlib.blake2b(source.content().encode() + rows.tobytes(), digest_size=16).hexdigest()
    return [batch], store_manifest([info], source.recipe, tokenizer, digest)


class _Source:
    """Records as rows of a store of one recipe."""

    def __init__(
        self, corpus: TokenCorpus, tokenizer: Any, max_length: int, prompt: str, chunks: ChunkRules | None
    ) -> None:
        records = corpus.records
        if not len(records):
            raise DataError(f"{corpus.path}: the corpus is empty; a token store needs a document")
        if prompt:
            raise ConfigError(f"{corpus.path}: holds tokens, before which the prompt {prompt!r} cannot be put any more")
        self.chunker = None if chunks is None else Chunker.for_tokenizer(tokenizer, chunks)
        limit = max_length if self.chunker is None else self.chunker.max_length
        if self.chunker is None and records.length > limit:
            raise ConfigError(
                f"{corpus.path}: texts were cut at {records.length} tokens, this model is to take {limit}: "
                "allow as many (--max-length, --max-document-length, --max-query-length), cut documents into chunks "
                "(--chunks), or tokenise the texts anew"
            )
        records.refuse_other(tokenizer)
        self.corpus = corpus
        self.vocabulary = len(tokenizer)
        given = getattr(tokenizer, "init_kwargs", {})
        self.leave_out = tokenizer.pad_token_id if given.get("padding_left_out") else None
        dtype, fingerprint = token_dtype(tokenizer), tokenizer_fingerprint(tokenizer)
        self.recipe = Recipe(fingerprint, max_length, prompt, dtype, keep_text=False, chunks=chunks)

    def tokens(self, rows: np.ndarray) -> tuple[Tokens, np.ndarray | None]:
        """Rows of the store for these records, and with chunks how many each has, int64."""
        found = self.corpus.records.tokens(rows, self.vocabulary, self.leave_out)
        found = found._replace(values=found.values.astype(self.recipe.dtype))
        return (found, None) if self.chunker is None else self.chunker.split(_cut(found, self.chunker))

    def names(self, rows: np.ndarray) -> pa.RecordBatch:
        """Documents without texts, as `make_batch` takes them."""
        ids = self.corpus.ids.arrow.take(pa.array(rows)).combine_chunks()
        empty = pa.array([""] * len(rows), pa.large_string())
        return pa.RecordBatch.from_pydict({"id": ids, "title": empty, "text": empty})

    def write(self, path: Path, part: range) -> ShardInfo:
        """Write the shard of these records."""
        rows = np.arange(part.start, part.stop)
        tokens, counts = self.tokens(rows)
        return write_shard(path, self.names(rows), tokens, self.recipe, "", counts)

    def content(self, threads: int = 1) -> str:
        """A hash of all tokens and ids."""
        digest = hashlib.blake2b(self.corpus.records.digest(threads).encode(), digest_size=16)
        for chunk in self.corpus.ids.arrow.chunks:
            _, ends, letters = chunk.buffers()
            starts = np.frombuffer(ends, dtype=np.int64)[: len(chunk) + 1]
            digest.update(starts.data)
            digest.update(np.frombuffer(letters, dtype=np.uint8)[: int(starts[-1])].data)
        return digest.hexdigest()


def _cut(tokens: Tokens, chunker: Chunker) -> Tokens:
    """The documents as the tokenizer would have cut them at what the chunks together hold, end tokens and all."""
    lengths, limit = np.diff(tokens.offsets), chunker.max_length
    long = np.flatnonzero(lengths > limit)
    if not len(long):
        return tokens
    place = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], lengths)
    values = tokens.values[place < limit]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, limit))])
    for back, token in enumerate(() if chunker.drops_end else reversed(chunker.suffix), 1):
        values[offsets[long + 1] - back] = token
    return Tokens(values, offsets, len(long))


def _is_there(target: Path, recipe: Recipe, content: str, replace: bool) -> bool:
    """Whether `target` is this store. Raises `ArtifactError` if it is one that may not be replaced."""
    if not target.is_dir() or not any(target.iterdir()):
        return False
    try:
        manifest = open_artifact(target, KIND, verify=False)
    except ArtifactError:
        return False
    refuse_other_recipe(target, manifest, recipe)
    if manifest.get("content") == content:
        return True
    if not replace:
        raise ArtifactError(f"{target}: holds another corpus, which is in use; choose another path")
    return False


def _in_order(source: _Source, folder: Path, parts: list[range], threads: int) -> Iterator[ShardInfo]:
    """Write every shard, `threads` at a time."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Any] = deque()
        for number, part in enumerate(parts):
            if len(pending) == threads:
                yield pending.popleft().result()
            pending.append(pool.submit(source.write, folder / shard_name(number), part))
        while pending:
            yield pending.popleft().result()


def _unseen(count: int, note: str = "", *, found: bool = False) -> None:
    """Progress that nobody watches."""
