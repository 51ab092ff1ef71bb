"""Encode a corpus shard by shard, so that an interrupted run keeps every finished shard."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa

from ance_fast.artifacts import atomic_file, publish, refuse_foreign, seal, write_json
from ance_fast.data.records import Document
from ance_fast.data.token_store import TokenStore
from ance_fast.data.tokenize import tokenizer_fingerprint
from ance_fast.encoding.shards import KIND, EmbeddingShards
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.encoder import Encoder
from ance_fast.progress import progress_bar

logger = logging.getLogger(__name__)


def encode_corpus(
    encoder: Encoder,
    corpus: TokenStore | Iterable[Document | tuple[str, str] | str],
    out_dir: str | Path,
    *,
    dtype: str = "float32",
    shard_rows: int = 65536,
    batch_tokens: int | None = None,
    resume: bool = True,
    show_progress: bool = False,
) -> EmbeddingShards:
    """Embed every passage into `.npy` shards of `shard_rows` rows under `out_dir`, float32 or float16.

    `corpus` is a token store, or documents that are tokenised into a store beside the output first. Shards are written
    atomically into a working folder; when all are there it is renamed to `out_dir`. With `resume`, shards that the same
    encoder made from the same store are kept.

    Raises `ArtifactError` if the store belongs to another tokenizer or `out_dir` holds something else, `OSError` on a
    full disk (finished shards stay).
    """
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype={dtype!r}: choose float32 or float16")
    target = Path(out_dir)
    refuse_foreign(target, KIND)
    work = target.with_name(f".{target.name}.encoding")
    store = corpus if isinstance(corpus, TokenStore) else _tokenise(encoder, corpus, target, show_progress)
    _check_store(encoder, store)
    identity = {
        "fingerprint": encoder.fingerprint(),
        "content": store.manifest["content"],
        "max_length": store.max_length,
        "prompt": store.prompt,
        "rows": len(store),
        "dim": encoder.dim,
        "dtype": dtype,
        "shard_rows": shard_rows,
    }
    _enter(work, identity, resume)
    starts = range(0, len(store), shard_rows)
    names = [f"embeddings-{number:05d}.npy" for number in range(len(starts))]
    with progress_bar("encoding", len(store), "passages") if show_progress else nullcontext(_silent) as advance:
        for name, start in zip(names, starts, strict=True):
            rows = np.arange(start, min(start + shard_rows, len(store)))
            if (work / name).exists():
                advance(len(rows))
                continue
            block = encoder.encode_tokens(store, rows, batch_tokens=batch_tokens, on_progress=advance)
            with atomic_file(work / name) as staging, open(staging, "wb") as file:
                np.save(file, block.cpu().numpy().astype(dtype))
    with atomic_file(work / "ids.arrow") as staging:
        table = pa.table({"id": store.ids.arrow})
        with pa.OSFile(str(staging), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    # identity.json stays: a kill before the rename must still find that these shards are this job's.
    for leftover in work.glob(".*.tmp"):
        leftover.unlink()
    seal(work, KIND, {**identity, "shards": names})
    publish(work, target)
    return EmbeddingShards.open(target, verify=False)


def _tokenise(
    encoder: Encoder, corpus: Iterable[Document | tuple[str, str] | str], target: Path, show: bool
) -> TokenStore:
    return TokenStore.build(
        corpus,
        encoder.tokenizer,
        target.with_name(target.name + ".tokens"),
        max_length=encoder.max_document_length,
        prompt=encoder.document_prompt,
        show_progress=show,
    )


def _check_store(encoder: Encoder, store: TokenStore) -> None:
    if store.tokenizer_fingerprint != tokenizer_fingerprint(encoder.tokenizer):
        raise ArtifactError(
            f"{store}: tokenised for another encoder's vocabulary; tokenize the corpus with this checkpoint"
        )
    if store.prompt != encoder.document_prompt:
        raise ArtifactError(
            f"{store}: tokenised with the prompt {store.prompt!r}, this checkpoint's is {encoder.document_prompt!r}; "
            "tokenize the corpus with this checkpoint"
        )
    if store.max_length > int(encoder.layout.max_seq_length or store.max_length):
        raise ConfigError(
            f"{store}: passages of up to {store.max_length} tokens, the encoder takes {encoder.layout.max_seq_length}"
        )


def _enter(work: Path, identity: dict[str, object], resume: bool) -> None:
    """Make the working folder, or go on in it when it belongs to exactly this job."""
    note = work / "identity.json"
    if work.exists():
        same = resume and note.exists() and json.loads(note.read_text(encoding="utf-8")) == identity
        if same:
            logger.info("going on with the shards in %s", work)
            return
        shutil.rmtree(work)
    work.mkdir(parents=True)
    write_json(note, identity)


def _silent(count: int) -> None:
    """Progress that nobody watches."""
