"""The pipeline: token store -> packer -> encoder -> pooling -> ring -> sinks, every stage in its own time.

    packer's thread        windows of corpus rows, cut into packed batches of a token budget (page-locked for a GPU)
    caller's thread        H2D copy, forward pass, pooling; rows go to their places in a window of contiguous rows.
                           On a CPU a thread a core does so, each with a batch of its own
    EmbeddingRing          a slot a window; on a GPU the copy to the host runs on a stream of its own
    a thread a sink        disk, index, matrix: each sees every window once, in corpus order

A window is what is sorted by length together, and what becomes one slot. So batches have no padding and nearly equal
cost, and consumers still get contiguous rows. Every queue is bounded: memory does not depend on the corpus. Nothing
waits for the device once a batch; an error on any side ends all of them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ance_fast.data.packing import PackedBatch, Packer
from ance_fast.data.token_store import TokenStore
from ance_fast.encoding.ring import EmbeddingRing, RingCancelled
from ance_fast.encoding.ring_slots import FillSlot
from ance_fast.encoding.sinks import Sink
from ance_fast.encoding.stages import StageTimes
from ance_fast.encoding.workers import Workers, one_thread_an_operation
from ance_fast.errors import ConfigError, DataError
from ance_fast.models.encoder import Encoder

logger = logging.getLogger(__name__)

Span = tuple[int, int]

# Rows of a window: enough batches that the last, partly filled one does not matter, few enough to stay in memory.
WINDOW_ROWS = {"cpu": 4096, "cuda": 16384}
# Windows between the encoder and the slowest sink.
SLOTS = 3
# Packed batches between the packer and the encoder.
BATCHES_AHEAD = 8


@dataclass(frozen=True)
class Window:
    """Rows start .. stop - 1 of the corpus; a batch with it holds some of them."""

    start: int
    stop: int


class TokenBudget:
    """Tokens of a batch at most; falls by half whenever the device runs out of memory."""

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"batch_tokens is {tokens}; it must be at least 1")
        self.tokens = tokens

    def halve(self, failed: int) -> None:
        """After a batch of `failed` tokens did not fit."""
        # By what failed, not by what is left: batches of the old size may still be on their way.
        smaller = max(1, failed // 2)
        if smaller < self.tokens:
            self.tokens = smaller
            logger.warning("out of memory on a batch of %d tokens: going on with %d a batch", failed, smaller)


def encode_spans(
    encoder: Encoder,
    store: TokenStore,
    spans: Iterable[Span],
    sinks: Sequence[Sink] = (),
    *,
    resident: Tensor | None = None,
    batch_tokens: int,
    window_rows: int | None = None,
    times: StageTimes | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    stopped: threading.Event | None = None,
    workers: int | None = None,
) -> None:
    """Embed rows of `store` and hand them to every sink.

    spans: (start, stop) ranges of rows, asked for one by one as the packer gets to them; sinks see them in this order.
    resident: a matrix [len(store), dim] of a floating type on the encoder's device that receives every row in place.
    batch_tokens: token budget of a forward pass; a longer passage is a batch of its own. Halved, with a warning, when
        the device runs out of memory.
    window_rows: rows sorted by length together and handed over at once (4,096 on a CPU, 16,384 on a GPU).
    times: receives the seconds of each stage. on_batch: called with (passages, tokens) of each batch.
    stopped: ends the run with RingCancelled when it is set, and is set when the run ends, so that spans which wait for
        something give up.
    workers: batches encoded at the same time on a CPU, each on one thread; torch's number of threads by default.

    Raises DataError naming passages whose embeddings hold NaN or infinity, ConfigError for settings out of range or a
    passage that does not fit the device's memory by itself, and whatever a sink raises.
    """
    times = times or StageTimes()
    device = encoder.device
    rows = window_rows or WINDOW_ROWS.get(device.type, 4096)
    if rows < 1:
        raise ConfigError(f"window_rows is {rows}; it must be at least 1")
    if resident is not None and tuple(resident.shape) != (len(store), encoder.dim):
        raise ConfigError(f"resident is {list(resident.shape)}; expected [{len(store)}, {encoder.dim}]")
    if not sinks and resident is None:
        raise ConfigError("nowhere to put the embeddings: give a sink or a resident matrix")
    stopped = stopped or threading.Event()
    packer = Packer(store, pin_memory=device.type == "cuda")
    chunks = store.chunks
    padding = encoder.padding_vector(chunks.length) if chunks is not None and chunks.keep_empty else None
    run = _Run(encoder, store, packer, TokenBudget(batch_tokens), times, on_batch, padding)
    done: list[Span] = []
    with times.running(), ExitStack() as stack:
        stack.enter_context(encoder.backbone.inference())
        threads = 1
        if device.type == "cpu":
            threads = workers or stack.enter_context(one_thread_an_operation())
            threads = 1 if encoder.backbone.has_own_threads else threads
        times.lanes |= {"forward": threads, "pool": threads}
        team = stack.enter_context(Workers(threads))
        ring = stack.enter_context(_ring(run, sinks, rows, stopped)) if sinks else None
        batches = stack.enter_context(_packed_ahead(run, spans, rows, stopped))
        for window, group in _by_window(batches):
            with ring.fill() if ring is not None else nullcontext() as slot:
                place = _place(run, window, resident, slot)
                team.run(partial(_encode_batch, run, window, place), group)
                if slot is None:
                    done.append((window.start, window.stop))
                    continue
                if resident is not None or device.type == "cuda":
                    slot.copy_from(place.float())
                slot.publish(len(place), tag=window.start)
    if resident is not None:
        for start, stop in done:
            _refuse_poisoned(resident[start:stop], start, store)


def encode_matrix(
    encoder: Encoder,
    store: TokenStore,
    *,
    batch_tokens: int,
    times: StageTimes | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Embeddings of all rows as one matrix [len(store), dim] on the encoder's device, written in place.

    Raises what `encode_spans` raises.
    """
    matrix = torch.zeros(len(store), encoder.dim, device=encoder.device, dtype=dtype)
    spans = [(0, len(store))] if len(store) else []
    encode_spans(encoder, store, spans, resident=matrix, batch_tokens=batch_tokens, times=times, on_batch=on_batch)
    return matrix


@dataclass(frozen=True)
class _Run:
    """What every batch of a run needs."""

    encoder: Encoder
    store: TokenStore
    packer: Packer
    budget: TokenBudget
    times: StageTimes
    on_batch: Callable[[int, int], None] | None
    padding: Tensor | None  # the embedding of rows without tokens, where that is not what the encoder makes of nothing


def _place(run: _Run, window: Window, resident: Tensor | None, slot: FillSlot | None) -> Tensor:
    """Where the embeddings of a window's rows go, [rows, dim] on the encoder's device."""
    if resident is not None:
        return resident[window.start : window.stop]
    count = window.stop - window.start
    if slot is not None and run.encoder.device.type == "cpu":
        return slot.tensor[:count]
    # A new one for each window: the ring still copies from the last.
    return torch.empty(count, run.encoder.dim, device=run.encoder.device)


def _encode_batch(run: _Run, window: Window, place: Tensor, batch: PackedBatch) -> None:
    """Embeddings of `batch` to their rows of `place`; split and tried again where memory does not suffice."""
    if len(batch) == 1 or batch.num_tokens <= run.budget.tokens:
        if _fits(run, place, batch):
            run.times.count(len(batch), batch.num_tokens)
            if run.on_batch is not None:
                run.on_batch(len(batch), batch.num_tokens)
            return
        run.budget.halve(batch.num_tokens)
        torch.cuda.empty_cache()
        if len(batch) == 1:
            row = window.start + int(batch.rows[0])
            raise ConfigError(
                f"passage {run.store.id(row)!r} (row {row}, {batch.num_tokens} tokens) does not fit the memory of "
                f"{run.encoder.device} by itself; tokenize with a smaller --max-length"
            )
    for part in run.packer.batches(window.start + batch.rows, token_budget=run.budget.tokens, window=0):
        _encode_batch(run, window, place, replace(part, rows=batch.rows[part.rows]))


def _fits(run: _Run, place: Tensor, batch: PackedBatch) -> bool:
    """Compute the embeddings of `batch`; False where the device has not the memory."""
    encoder, device, times = run.encoder, run.encoder.device, run.times
    try:
        with times.on(device, "H2D") if device.type == "cuda" else nullcontext():
            there = batch.to(device, non_blocking=True)
            rows = torch.from_numpy(batch.rows)
            if device.type == "cuda":
                rows = rows.pin_memory().to(device, non_blocking=True)
        with times.on(device, "forward"):
            hidden = encoder.hidden(there)
        with times.on(device, "pool"):
            vectors = encoder.pool(hidden, there)
            if run.padding is not None:
                vectors[torch.from_numpy(batch.lengths == 0).to(device)] = run.padding
            place.index_copy_(0, rows, vectors.to(place.dtype))
    except torch.OutOfMemoryError:
        return False
    return True


@contextmanager
def _ring(run: _Run, sinks: Sequence[Sink], rows: int, stopped: threading.Event) -> Iterator[EmbeddingRing]:
    """A ring that the sinks drain, each in a thread; leaving it waits until they have seen everything."""

    def consume(number: int, sink: Sink) -> None:
        try:
            with ring.drain(number) as slots:
                for slot in slots:
                    _refuse_poisoned(slot.tensor, slot.tag, run.store)
                    with run.times.host(sink.stage):
                        sink.write(slot.tag, slot.array)
        except BaseException:
            # The next span may be one that waits for others: it has to hear of this before it is there.
            stopped.set()
            raise

    ring = EmbeddingRing(
        slots=SLOTS,
        rows=min(rows, max(1, len(run.store))),
        dim=run.encoder.dim,
        consumers=len(sinks),
        pinned="auto" if run.encoder.device.type == "cuda" else False,
    )
    try:
        with ThreadPoolExecutor(len(sinks), thread_name_prefix="sink") as pool:
            futures = []
            try:
                with ring:
                    futures = [pool.submit(consume, number, sink) for number, sink in enumerate(sinks)]
                    yield ring
            except RingCancelled:
                _raise_first(futures)
                raise
            _raise_first(futures)
    finally:
        if ring.copy_seconds:
            run.times.add("D2H", ring.copy_seconds)


def _raise_first(futures: Sequence[Future[None]]) -> None:
    """Raise what a sink failed with; that others were cancelled only follows from it."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, RingCancelled)):
        raise error


@contextmanager
def _packed_ahead(
    run: _Run, spans: Iterable[Span], rows: int, stopped: threading.Event
) -> Iterator[Iterator[tuple[Window, PackedBatch | None]]]:
    """Batches of every window, packed by a thread that stays at most `BATCHES_AHEAD` ahead; None ends a window.

    The end is said before the next span is asked for: that may wait until this window has been stored.
    """
    ready: queue.Queue[tuple[Window, PackedBatch | None] | BaseException | None] = queue.Queue(BATCHES_AHEAD)

    def pack() -> None:
        try:
            for window in _windows(spans, rows):
                request = np.arange(window.start, window.stop)
                batches = run.packer.batches(request, token_budget=run.budget.tokens)
                while True:
                    if stopped.is_set():
                        raise RingCancelled("the encoding was stopped")
                    with run.times.host("pack"):
                        batch = next(batches, None)
                    ready.put((window, batch))
                    if batch is None:
                        break
            if stopped.is_set():
                raise RingCancelled("the encoding was stopped")
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def batches() -> Iterator[tuple[Window, PackedBatch | None]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=pack, name="packer", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        stopped.set()
        while thread.is_alive():
            # It may stand at a full queue.
            while not ready.empty():
                ready.get_nowait()
            thread.join(0.01)


def _windows(spans: Iterable[Span], rows: int) -> Iterator[Window]:
    for start, stop in spans:
        for first in range(start, stop, rows):
            yield Window(first, min(first + rows, stop))


def _by_window(
    batches: Iterator[tuple[Window, PackedBatch | None]],
) -> Iterator[tuple[Window, Iterator[PackedBatch]]]:
    """Each window with its batches, which have to be used up before the next window is asked for."""

    def rest(batch: PackedBatch | None) -> Iterator[PackedBatch]:
        while batch is not None:
            yield batch
            _, batch = next(batches)

    for window, first in batches:
        yield window, rest(first)


def _refuse_poisoned(block: Tensor, start: int, store: TokenStore) -> None:
    # The sum is finite where all are, but for an overflow: then the rows are looked at one by one.
    if torch.isfinite(block.sum(dtype=torch.float32)):
        return
    bad = torch.nonzero(~torch.isfinite(block).all(dim=1)).flatten().tolist()
    if not bad:
        return
    names = ", ".join(repr(store.id(start + row)) for row in bad[:5]) + (", ..." if len(bad) > 5 else "")
    raise DataError(
        f"embeddings of {len(bad)} passages hold NaN or infinity: {names} (from row {start + bad[0]}); "
        "the encoder's weights are broken, or its half precision overflows: try --device cpu or dtype float32"
    )
