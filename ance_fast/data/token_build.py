"""Making a token store: stream documents, tokenise shard by shard in any number of processes, seal, rename.

Work happens in `.{name}.building` beside the target. A shard there is whole (it was renamed into place) and says what
it was made from, so a build that was interrupted streams the corpus again, hashes it, and keeps every shard whose
content is the same. Hashing runs at about a gigabyte a second; tokenising is what is saved.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.artifacts import open_artifact, publish, refuse_foreign, seal
from ance_fast.data.chunks import Chunker, ChunkRules
from ance_fast.data.dataset import Corpus
from ance_fast.data.document_batches import from_arrow
from ance_fast.data.document_stream import DocumentSlice, document_slices, unique_documents
from ance_fast.data.records import Document
from ance_fast.data.token_shards import (
    Recipe,
    ShardInfo,
    adopt_shard,
    make_batch,
    matching_shard,
    shard_name,
    write_shard,
)
from ance_fast.data.tokenize import TextEncoder, Tokens, text_encoder, token_dtype, tokenize, tokenizer_fingerprint
from ance_fast.errors import AnceFastError, ArtifactError, ConfigError, DataError
from ance_fast.progress import Advance, plain_number, progress_bar

logger = logging.getLogger(__name__)

KIND = "token_store"
_TABLE_ROWS = 65536


@dataclass
class Tokenised:
    """What a build tokenised itself; shards that were there already do not count."""

    rows: int = 0
    tokens: int = 0


def build_store(
    corpus: Iterable[Document | tuple[str, str] | str],
    tokenizer: Any,
    path: str | os.PathLike[str],
    *,
    max_length: int,
    prompt: str,
    chunks: ChunkRules | None = None,
    num_proc: int,
    shard_rows: int,
    keep_text: bool,
    show_progress: bool,
    replace: bool = True,
    accept: Callable[[Path], None] | None = None,
) -> tuple[Path, Tokenised]:
    """Build the store `path` as `TokenStore.build` describes; returns its absolute path and what there was to do.

    accept: called with the folder that is about to take the place of `path`.
    """
    if num_proc < 1 or shard_rows < 1:
        raise ConfigError(f"num_proc and shard_rows must be at least 1, not {num_proc} and {shard_rows}")
    target = Path(os.path.abspath(path))
    maker = _maker(tokenizer, max_length, prompt, chunks, keep_text=keep_text)
    recipe = maker.recipe
    refuse_foreign(target, KIND)
    present = _present_store(target, recipe)
    with _work_directory(target) as work, _progress(corpus, show_progress) as advance:
        shards = _ShardWriter(maker, work, target, advance)
        content = hashlib.blake2b(digest_size=16)
        with _pool(num_proc, work) as pool:
            for documents in document_slices(unique_documents(corpus), shard_rows, content=content):
                shards.add(documents, pool, num_proc)
                del documents  # before the next slice is gathered
            infos = shards.finish()
        if not infos:
            raise DataError(f"{getattr(corpus, 'path', 'corpus')}: the corpus is empty; a token store needs a document")
        if present is not None and shards.untouched == len(infos) == len(present["shards"]):
            shutil.rmtree(work)
            logger.info("%s: already holds this corpus, tokenised by these settings", target)
            return target, shards.tokenised
        if present is not None and not replace:
            shutil.rmtree(work)
            raise ArtifactError(f"{target}: holds another corpus, which is in use; choose another path")
        shards.adopt_untouched()
        names = [shard_name(number) for number in range(len(infos))]
        for stale in set(os.listdir(work)) - set(names):
            (work / stale).unlink()
        manifest = store_manifest(infos, recipe, tokenizer, content.hexdigest())
        seal(work, KIND, {**manifest, "shard_rows": shard_rows})
        if accept is not None:
            try:
                accept(work)
            except AnceFastError:
                shutil.rmtree(work)
                raise
        publish(work, target)
    return target, shards.tokenised


def build_table(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    ids: Sequence[str] | None,
    max_length: int,
    prompt: str,
    chunks: ChunkRules | None = None,
) -> tuple[list[pa.RecordBatch], dict[str, Any]]:
    """The record batches and the manifest of a store in memory; see `TokenStore.from_texts`."""
    if ids is not None and len(ids) != len(texts):
        raise ConfigError(f"{len(ids)} ids for {len(texts)} texts")
    maker = _maker(tokenizer, max_length, prompt, chunks, keep_text=True)
    pairs: Iterable[tuple[str, str] | str] = texts if ids is None else zip(ids, texts, strict=True)
    content = hashlib.blake2b(digest_size=16)
    batches, infos = [], []
    for documents in document_slices(unique_documents(pairs), _TABLE_ROWS, content=content):
        # The text is taken as given: joining it with a title, as documents need, would strip its white space.
        given = (prompt + document.text for document in from_arrow(documents.batches))
        tokens, counts = maker.tokens(given)
        batches.append(make_batch(pa.concat_batches(documents.batches), tokens, maker.recipe, counts))
        infos.append(ShardInfo(maker.recipe, "", "", batches[-1].num_rows, len(tokens.values), tokens.truncated))
    return batches, store_manifest(infos, maker.recipe, tokenizer, content.hexdigest())


@dataclass(frozen=True)
class _RowMaker:
    """Texts to the token lists of rows, in any process."""

    encoder: TextEncoder
    recipe: Recipe
    chunker: Chunker | None

    def tokens(
        self, texts: Iterable[str], advance: Callable[[int, int], None] | None = None
    ) -> tuple[Tokens, np.ndarray | None]:
        """The rows' tokens, and where texts are cut into chunks how many each has, int64 [texts]."""
        tokens = tokenize(texts, self.encoder, self.recipe.dtype, advance)
        return (tokens, None) if self.chunker is None else self.chunker.split(tokens)


def _maker(tokenizer: Any, max_length: int, prompt: str, chunks: ChunkRules | None, *, keep_text: bool) -> _RowMaker:
    if chunks is not None and chunks.length != max_length:
        raise ConfigError(f"max_length={max_length}, but chunks of {chunks.length} tokens; they are the same limit")
    chunker = None if chunks is None else Chunker.for_tokenizer(tokenizer, chunks)
    recipe = Recipe(tokenizer_fingerprint(tokenizer), max_length, prompt, token_dtype(tokenizer), keep_text, chunks)
    return _RowMaker(text_encoder(tokenizer, max_length if chunker is None else chunker.max_length), recipe, chunker)


class _ShardWriter:
    """Gives each slice of documents its shard: left in the target, kept from an earlier try, or tokenised anew."""

    def __init__(self, maker: _RowMaker, work: Path, target: Path, advance: Advance) -> None:
        self.maker, self.work, self.target, self.advance = maker, work, target, advance
        self.infos: list[ShardInfo | None] = []
        self.tokenised = Tokenised()
        self._started = time.monotonic()
        self._pending: dict[Future[ShardInfo], int] = {}
        self._in_target: list[str] = []

    @property
    def untouched(self) -> int:
        """Shards that lie in the target as they should."""
        return len(self._in_target)

    def add(self, documents: DocumentSlice, pool: ProcessPoolExecutor | None, limit: int) -> None:
        """Account for the next shard; returns when fewer than `limit` shards are being worked on."""
        number = len(self.infos)
        name = shard_name(number)
        info = matching_shard(self.target / name, self.maker.recipe, documents.content)
        if info is not None:
            self._in_target.append(name)
        else:
            info = matching_shard(self.work / name, self.maker.recipe, documents.content)
        self.infos.append(info)
        if info is not None:
            self.advance(documents.rows, found=True)
        elif pool is None:
            self.infos[number] = _write(documents, self.maker, self.work / name, self._count)
        else:
            self._collect(limit - 1)
            self._pending[pool.submit(_write, documents, self.maker, self.work / name)] = number

    def finish(self) -> list[ShardInfo]:
        """Wait for every shard and return their records in order."""
        self._collect(0)
        return [info for info in self.infos if info is not None]

    def adopt_untouched(self) -> None:
        """Take the target's good shards into the work directory, which is about to replace it."""
        for name in self._in_target:
            adopt_shard(self.target / name, self.work / name)

    def _collect(self, at_most: int) -> None:
        while len(self._pending) > at_most:
            for future in wait(self._pending, return_when=FIRST_COMPLETED).done:
                info = future.result()
                self.infos[self._pending.pop(future)] = info
                self._count(info.rows, info.tokens)

    def _count(self, rows: int, tokens: int) -> None:
        self.tokenised.rows += rows
        self.tokenised.tokens += tokens
        rate = self.tokenised.tokens / max(time.monotonic() - self._started, 1e-3)
        self.advance(rows, f"{plain_number(rate)} tokens/s")


def _write(
    documents: DocumentSlice,
    maker: _RowMaker,
    path: Path,
    advance: Callable[[int, int], None] | None = None,
) -> ShardInfo:
    texts = (maker.recipe.prompt + document.full_text for document in from_arrow(documents.batches))
    tokens, counts = maker.tokens(texts, advance)
    return write_shard(path, pa.concat_batches(documents.batches), tokens, maker.recipe, documents.content, counts)


def store_manifest(infos: list[ShardInfo], recipe: Recipe, tokenizer: Any, content: str) -> dict[str, Any]:
    """What a store with these shards says of itself."""
    return {
        **recipe.as_json(),
        "tokenizer_name": str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__),
        "vocab_size": len(tokenizer),
        "rows": sum(info.rows for info in infos),
        "tokens": sum(info.tokens for info in infos),
        "truncated": sum(info.truncated for info in infos),
        "shards": [
            {"file": shard_name(number), "rows": info.rows, "tokens": info.tokens, "truncated": info.truncated}
            for number, info in enumerate(infos)
        ],
        "content": content,
        "versions": {package: version(package) for package in ("pyarrow", "tokenizers", "transformers")},
    }


def refuse_other_recipe(target: Path, manifest: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise `ArtifactError` where the store at `target` was made by other settings than `recipe`."""
    for name in ("chunks", "tokenizer", "max_length", "prompt"):
        built, wanted = manifest.get(name), recipe.as_json().get(name)
        if built != wanted:
            raise ArtifactError(
                f"{target}: holds a token store built with {name} {built!r}, now {wanted!r}; "
                "choose another path or remove it"
            )


def _present_store(target: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The manifest of a complete store at `target` with this recipe, None if there is none or it must be rebuilt."""
    if not target.is_dir() or not any(target.iterdir()):
        return None
    try:
        manifest = open_artifact(target, KIND, verify=False)
    except ArtifactError as error:
        logger.warning("%s; what is intact is used again", error)
        return None
    refuse_other_recipe(target, manifest, recipe)
    return manifest


@contextmanager
def _work_directory(target: Path) -> Iterator[Path]:
    """The directory a build works in, locked against a second build of the same store."""
    work = target.with_name(f".{target.name}.building")
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"{target}: another process is building it; wait for that one to end") from None
        yield work
    finally:
        os.close(descriptor)
        if work.is_dir() and not any(work.iterdir()):
            work.rmdir()


@contextmanager
def _pool(num_proc: int, work: Path) -> Iterator[ProcessPoolExecutor | None]:
    if num_proc == 1:
        yield None
        return
    pool = ProcessPoolExecutor(num_proc, mp_context=get_context("spawn"), initializer=_set_up_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ArtifactError(
            f"{work}: a worker process died (out of memory, or a script without `if __name__ == '__main__':`); "
            "build again to go on from the finished shards, or use num_proc=1"
        ) from error
    finally:
        # What runs is finished, so that an interrupted build keeps it.
        pool.shutdown(wait=True, cancel_futures=True)


def _set_up_worker() -> None:
    # Ctrl-C reaches the whole process group: the parent alone decides, so that shards under way end whole.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One core a process: the tokenizer's own threads would fight over the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextmanager
def _progress(corpus: Iterable[Any], show: bool) -> Iterator[Advance]:
    if not show:
        yield lambda count, note="", *, found=False: None
        return
    # Counting a corpus would read it once more, so its size is used only where it is known.
    total = corpus.counted if isinstance(corpus, Corpus) else len(corpus) if isinstance(corpus, Sequence) else None
    with progress_bar("tokenising", total, "passages") as advance:
        yield advance
