"""Encode a corpus into shards on disk, and into any other sink on the way, so that nothing computed is ever lost."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast.data.records import Document
from ance_fast.data.text_record import text_preset_of
from ance_fast.data.token_store import TokenStore
from ance_fast.data.tokenize import tokenizer_fingerprint
from ance_fast.encoding.budget import default_budget, measured_budget
from ance_fast.encoding.job_entry import refuse_other
from ance_fast.encoding.pipeline import Span, encode_spans
from ance_fast.encoding.shard_job import ShardJob, job_identity, wanted_result
from ance_fast.encoding.shard_plan import Shard
from ance_fast.encoding.shard_writer import ShardWriter
from ance_fast.encoding.shards import EmbeddingShards
from ance_fast.encoding.sinks import Sink
from ance_fast.encoding.stages import StageTimes, batches_on
from ance_fast.encoding.workers import one_thread_an_operation
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.encoder import Encoder
from ance_fast.progress import Advance, progress_bar

logger = logging.getLogger(__name__)

# Passages whose mean is subtracted when centring: any vector keeps the ranking, a near mean saves most bits.
MEAN_SAMPLE = 1024
# Rows read back at once from a shard that another run or process made.
READ_ROWS = 4096


def encode_corpus(
    encoder: Encoder,
    corpus: TokenStore | Iterable[Document | tuple[str, str] | str],
    out_dir: str | Path,
    *,
    dtype: str = "float32",
    centre: bool = False,
    shard_rows: int = 65536,
    batch_tokens: int | None = None,
    devices: Sequence[str] | None = None,
    sinks: Sequence[Sink] = (),
    resume: bool = True,
    times: StageTimes | None = None,
    show_progress: bool = False,
) -> EmbeddingShards:
    """Embed every passage into `.npy` shards of `shard_rows` rows under `out_dir`, float32 or float16.

    corpus: a token store, or documents that are tokenised into a store beside the output first.
    centre: subtract the mean of a sample before rounding to float16; the order of inner products stays.
    batch_tokens: token budget of a forward pass; measured on this machine and corpus by default.
    devices: run on all of these, each with its own copy of the encoder; by default on the encoder's own.
    sinks: get every row as well, as it is stored, in corpus order, while the next ones are encoded; rows that an
        earlier run or another process has encoded are read from their shards.
    resume: keep what an earlier run of the same encoder over the same corpus finished; of a corpus that has grown, only
        the new passages are encoded. False starts over.
    times: receives the seconds of each stage.

    Several processes, on several hosts, may do this for one `out_dir` at the same time: each takes shards the others
    have not. Shards appear whole or not at all, so a kill costs at most the shards in flight.

    Raises `ArtifactError` if the store belongs to another tokenizer, or `out_dir` holds something else: embeddings of
    another encoder or corpus are refused, not mixed, and the tokens beside them stay as they are. `DataError` names
    passages whose embeddings are not finite, `OSError` says which file a full disk cut off (finished shards stay).
    """
    times = times or StageTimes()

    def refuse(store: TokenStore) -> None:
        identity = job_identity(_settings(encoder, store), dim=encoder.dim, dtype=dtype, centred=centre)
        refuse_other(wanted_result(out_dir, store, identity))

    store = tokenised(
        encoder, corpus, Path(out_dir), times, accept=refuse if resume else None, show_progress=show_progress
    )
    _check_store(encoder, store)
    job = ShardJob.enter(
        out_dir,
        _settings(encoder, store),
        store,
        dim=encoder.dim,
        dtype=dtype,
        shard_rows=shard_rows,
        resume=resume,
        centre=partial(_sample_mean, encoder, store) if centre else None,
        budget=lambda: {"batch_tokens": batch_tokens or measured_budget(encoder, store)},
    )
    bar = progress_bar("encoding", len(store), "passages") if show_progress else nullcontext(_silent)
    with job, bar as advance:
        advance(sum(stop - start for start, stop, _ in job.finished), found=True)
        followers = [_Follower(sink, job, dtype) for sink in sinks]
        _run(_on_devices(encoder, devices), store, job, followers, times, advance, batch_tokens)
        shards = job.finish()
    for follower in followers:
        with times.host(follower.stage):
            follower.catch_up(shards)
    return shards


def _run(
    encoders: list[Encoder],
    store: TokenStore,
    job: ShardJob,
    followers: list[_Follower],
    times: StageTimes,
    advance: Advance,
    batch_tokens: int | None,
) -> None:
    """Work on the job's shards with every encoder at once."""
    budget = int((job.budget or {}).get("batch_tokens", default_budget(encoders[0].device)))
    if batch_tokens not in (None, budget):
        logger.warning("batches of %d tokens, as this job began, so that its bytes do not depend on a restart", budget)
    on_batch = batches_on(advance)

    stops = [threading.Event() for _ in encoders]

    def work(encoder: Encoder, stopped: threading.Event, workers: int | None) -> None:
        writer = _ShardSink(job, stopped)
        # Several encoders take shards out of order, so what follows reads them from disk at the end.
        sinks: list[Sink] = [writer, *(followers if len(encoders) == 1 else ())]
        try:
            encode_spans(
                encoder, store, writer.spans(), sinks,
                batch_tokens=budget, times=times, on_batch=on_batch, stopped=stopped, workers=workers,
            )  # fmt: skip
        finally:
            writer.abort()

    if len(encoders) == 1:
        work(encoders[0], stops[0], None)
        return
    with (
        one_thread_an_operation() as threads,
        ThreadPoolExecutor(len(encoders), thread_name_prefix="device") as pool,
    ):
        workers = max(1, threads // len(encoders))
        futures = [
            pool.submit(work, encoder, stopped, workers) for encoder, stopped in zip(encoders, stops, strict=True)
        ]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # a device that failed, or Ctrl-C, ends the others
            failed = [future for future in futures if future.done()]
            for stopped in stops:
                stopped.set()
        for future in [*failed, *futures]:
            future.result()
    each = {stage: times.lanes.get(stage, 1) for stage in ("pack", "H2D", "forward", "pool", "D2H", "write")}
    times.lanes |= {stage: len(encoders) * threads for stage, threads in each.items()}


class _ShardSink:
    """Writes the blocks of claimed shards; the packer's thread claims, a sink's thread writes and finishes."""

    stage = "write"

    def __init__(self, job: ShardJob, stopped: threading.Event) -> None:
        self._job, self._stopped = job, stopped
        self._claimed: list[Shard] = []
        self._writer: ShardWriter | None = None

    def spans(self) -> Iterator[Span]:
        for shard in self._job.claim(self._stopped):
            self._claimed.append(shard)
            yield shard.start, shard.stop

    def write(self, start: int, block: np.ndarray) -> None:
        if self._writer is None:
            self._writer = self._job.writer(self._claimed.pop(0))
        self._writer.write(block)
        if start + len(block) == self._writer.shard.stop:
            self._writer.close()
            self._writer = None

    def abort(self) -> None:
        """Drop a shard that was not finished."""
        if self._writer is not None:
            self._writer.abort()


class _Follower:
    """Gives a sink every row in corpus order, as stored: live, or read back where another run or process was first."""

    def __init__(self, sink: Sink, job: ShardJob, dtype: str) -> None:
        self.stage = sink.stage
        self._sink, self._job, self._dtype = sink, job, np.dtype(dtype)
        self._next = 0

    def write(self, start: int, block: np.ndarray) -> None:
        while self._next < start:
            whole = next((path for first, _, path in self._job.finished if first == self._next), None)
            if whole is None:
                return  # still being made elsewhere: the rest is read when all is done
            try:
                stored = np.load(whole, mmap_mode="r")
            except FileNotFoundError:
                return  # another process has published everything meanwhile
            self._send(stored, stored=True)
        if self._next == start:
            self._send(block, stored=False)

    def catch_up(self, shards: EmbeddingShards) -> None:
        """Send what is left from the finished shards."""
        for first, stored in shards.stored():
            if first + len(stored) > self._next:
                self._send(stored[self._next - first :], stored=True)

    def _send(self, block: np.ndarray, *, stored: bool) -> None:
        for first in range(0, len(block), READ_ROWS):
            piece = block[first : first + READ_ROWS]
            self._sink.write(self._next, _as_read(piece, self._dtype, self._job.mean, stored))
            self._next += len(piece)


def _as_read(block: np.ndarray, dtype: np.dtype[Any], mean: np.ndarray | None, stored: bool) -> np.ndarray:
    """float32 rows as a reader of the shards sees them, so that a sink's content does not depend on how it was fed."""
    if mean is None:
        return (block if stored else block.astype(dtype)).astype(np.float32, copy=False)
    rounded = block if stored else (block - mean).astype(dtype)
    return rounded.astype(np.float32) + mean


def _on_devices(encoder: Encoder, devices: Sequence[str] | None) -> list[Encoder]:
    if devices is None:
        return [encoder]
    if isinstance(devices, str) or not devices:
        raise ConfigError(f"devices is {devices!r}; give a list such as ['cuda:0', 'cuda:1']")
    first, *others = devices
    try:
        return [encoder.to(first), *(copy.deepcopy(encoder).to(device) for device in others)]
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"devices={list(devices)}: {error}") from error


def _settings(encoder: Encoder, store: TokenStore) -> dict[str, Any]:
    layout, preset = encoder.layout, text_preset_of(encoder.tokenizer)
    return {
        "fingerprint": encoder.fingerprint(),
        "pooling": layout.pooling,
        "normalize": layout.normalize,
        "precision": encoder.info()["dtype"],
        "tokenizer": store.tokenizer_fingerprint,
        "max_length": store.max_length,
        "prompt": store.prompt,
        **({} if preset is None else {"text_preset": preset}),
        **({} if store.chunks is None else {"chunks": store.chunks.as_json()}),
    }


def _sample_mean(encoder: Encoder, store: TokenStore) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(store) - 1, min(MEAN_SAMPLE, len(store))).astype(np.int64))
    mean: np.ndarray = encoder.encode_tokens(store, rows).double().mean(0).to(torch.float32).cpu().numpy()
    return mean


def tokenised(
    encoder: Encoder,
    corpus: TokenStore | Iterable[Document | tuple[str, str] | str],
    out_dir: Path,
    times: StageTimes,
    *,
    accept: Callable[[TokenStore], None] | None = None,
    show_progress: bool = False,
) -> TokenStore:
    """`corpus` if it is a token store, else one made of it beside `out_dir`.

    `accept` may refuse one that is about to replace an older one there, as in `TokenStore.build`.
    """
    if isinstance(corpus, TokenStore):
        return corpus
    with times.running(), times.host("tokenise"):
        return TokenStore.build(
            corpus,
            encoder.tokenizer,
            out_dir.with_name(out_dir.name + ".tokens"),
            max_length=encoder.max_document_length,
            prompt=encoder.document_prompt,
            chunks=encoder.chunks,
            show_progress=show_progress,
            accept=accept,
        )


def refuse_changed_corpus(out_dir: str | Path, store: TokenStore) -> None:
    """Raise `ArtifactError` if what is encoded at `out_dir` is not the beginning of `store`, whatever the encoder."""
    refuse_other(wanted_result(out_dir, store, {}))


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
    if store.chunks != encoder.chunks:
        raise ArtifactError(
            f"{store}: its documents are cut by {store.chunks}, this encoder's by {encoder.chunks}; tokenize the "
            "corpus again, or change the encoder with set_chunks (--chunks)"
        )
    if store.max_length > int(encoder.layout.max_seq_length or store.max_length):
        raise ConfigError(
            f"{store}: passages of up to {store.max_length} tokens, the encoder takes {encoder.layout.max_seq_length}"
        )


def _silent(count: int, note: str = "", *, found: bool = False) -> None:
    """Progress that nobody watches."""
