"""The pipeline: every row once and in order at every sink, bounded, and never hanging when a side fails."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ance_fast import Encoder, TokenStore
from ance_fast.data.packing import PackedBatch
from ance_fast.encoding import EmbeddingRing, RingCancelled, pipeline
from ance_fast.encoding.pipeline import encode_matrix, encode_spans
from ance_fast.encoding.sinks import MatrixSink
from ance_fast.encoding.stages import StageTimes
from ance_fast.errors import ConfigError, DataError

pytestmark = pytest.mark.timeout(60)


class Recorder:
    """A sink that keeps a copy of every block."""

    stage = "write"

    def __init__(self, delay: float = 0.0) -> None:
        self.blocks: list[tuple[int, np.ndarray]] = []
        self.delay = delay

    def write(self, start: int, block: np.ndarray) -> None:
        time.sleep(self.delay)
        self.blocks.append((start, block.copy()))


class Failing:
    stage = "write"

    def __init__(self, at: int) -> None:
        self.left = at

    def write(self, start: int, block: np.ndarray) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")


@pytest.fixture
def expected(encoder: Encoder, store: TokenStore) -> np.ndarray:
    return encoder.encode_tokens(store).numpy()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 400), max_size=6),
    window_rows=st.integers(1, 500),
    batch_tokens=st.integers(60, 2000),
    sinks=st.integers(1, 3),
)
def test_every_sink_sees_every_row_once_in_order(
    encoder: Encoder, store: TokenStore, cuts: list[int], window_rows: int, batch_tokens: int, sinks: int
) -> None:
    edges = sorted(cuts)
    spans = list(itertools.pairwise(edges))
    recorders = [Recorder() for _ in range(sinks)]
    times = StageTimes()
    encode_spans(encoder, store, spans, recorders, batch_tokens=batch_tokens, window_rows=window_rows, times=times)
    wanted = [row for start, stop in spans for row in range(start, stop)]
    whole = encoder.encode_tokens(store).numpy() if wanted else np.zeros((0, encoder.dim), np.float32)
    for recorder in recorders:
        rows = [row for start, block in recorder.blocks for row in range(start, start + len(block))]
        assert rows == wanted
        assert all(len(block) <= window_rows for _, block in recorder.blocks)
        for start, block in recorder.blocks:
            np.testing.assert_allclose(block, whole[start : start + len(block)], atol=2e-6)
    assert times.passages == len(wanted)
    assert times.tokens == int(store.lengths[wanted].sum())


def test_copies_of_the_device_are_a_stage_where_there_are_some(
    encoder: Encoder, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages() -> dict[str, float]:
        times = StageTimes()
        encode_spans(encoder, store, [(0, 50)], [Recorder()], batch_tokens=500, times=times)
        return {row["stage"]: row["seconds"] for row in times.table()}

    copied = {True: 0.25, False: 0.0}
    assert list(stages()) == ["pack", "forward", "pool", "write"]
    # A ring tells at the end what its device took: known once the sinks have had every slot.
    drained = property(lambda ring: copied[ring.closed and ring.states == ["free"] * ring.slots])
    monkeypatch.setattr(EmbeddingRing, "copy_seconds", drained)
    table = stages()
    assert list(table) == ["pack", "forward", "pool", "D2H", "write"]
    assert table["D2H"] == 0.25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_timed_in_both_directions(tiny: Callable[..., Path], store: TokenStore) -> None:
    times = StageTimes()
    encoder = Encoder.load(str(tiny("Bert")), max_document_length=32, device="cuda")
    encode_spans(encoder, store, [(0, len(store))], [Recorder()], batch_tokens=500, times=times)
    seconds = {row["stage"]: row["seconds"] for row in times.table()}
    assert list(seconds) == ["pack", "H2D", "forward", "pool", "D2H", "write"]
    assert min(seconds.values()) > 0


def test_matrices_receive_the_rows_in_place(encoder: Encoder, store: TokenStore, expected: np.ndarray) -> None:
    np.testing.assert_allclose(encode_matrix(encoder, store, batch_tokens=300).numpy(), expected, atol=2e-6)
    half = encode_matrix(encoder, store, batch_tokens=300, dtype=torch.float16)
    np.testing.assert_allclose(half.numpy(), expected, atol=2e-3)
    on_host = np.zeros((100, encoder.dim), np.float16)
    resident = torch.zeros(len(store), encoder.dim)
    encode_spans(
        encoder,
        store,
        [(50, 150)],
        [MatrixSink(on_host, first=50)],
        resident=resident,
        batch_tokens=300,
        window_rows=32,
    )
    np.testing.assert_allclose(on_host, expected[50:150], atol=2e-3)
    np.testing.assert_allclose(resident[50:150].numpy(), expected[50:150], atol=2e-6)
    assert not resident[:50].any()


def test_the_encoder_waits_for_the_slowest_sink(encoder: Encoder, store: TokenStore) -> None:
    seen: list[int] = []

    class Held:
        stage = "write"

        def write(self, start: int, block: np.ndarray) -> None:
            if not seen:
                # Long enough that an encoder without back-pressure would run through the corpus.
                time.sleep(1.0)
                seen.append(encoded[0])

    encoded = [0]
    encode_spans(
        encoder,
        store,
        [(0, 400)],
        [Held()],
        batch_tokens=200,
        window_rows=10,
        on_batch=lambda passages, tokens: encoded.__setitem__(0, encoded[0] + passages),
    )
    assert encoded[0] == 400
    assert seen[0] <= 10 * (pipeline.SLOTS + 1)


def test_a_failing_sink_ends_the_others_and_is_what_the_caller_gets(encoder: Encoder, store: TokenStore) -> None:
    for at in (0, 3, 39):  # the first window, one in the middle, the last
        with pytest.raises(OSError, match="No space left"):
            encode_spans(encoder, store, [(0, 400)], [Recorder(), Failing(at)], batch_tokens=200, window_rows=10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("sink", "packer"))]


def test_failing_spans_and_encoders_reach_the_caller(
    encoder: Encoder, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spans() -> Iterator[tuple[int, int]]:
        yield 0, 50
        raise RuntimeError("no more spans")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="no more spans"):
        encode_spans(encoder, store, spans(), [recorder], batch_tokens=200, window_rows=10)

    def interrupted(batch: PackedBatch) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_spans(encoder, store, [(0, 400)], [Recorder()], batch_tokens=200, window_rows=10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("sink", "packer"))]


@pytest.mark.parametrize("resident", [False, True])
def test_poisoned_embeddings_name_their_passages(
    encoder: Encoder, store: TokenStore, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    inner = encoder.pool

    def poisoned(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        embeddings = inner(hidden, batch)
        if (batch.rows == 7).any():
            embeddings[int(np.flatnonzero(batch.rows == 7)[0]), 3] = float("nan")
        return embeddings

    monkeypatch.setattr(encoder, "pool", poisoned)
    matrix = torch.zeros(len(store), encoder.dim) if resident else None
    sinks = [] if resident else [Recorder()]
    with pytest.raises(DataError, match=f"embeddings of 1 passages hold NaN or infinity: {store.id(107)!r}"):
        encode_spans(encoder, store, [(100, 110)], sinks, resident=matrix, batch_tokens=200)


def test_large_finite_values_are_not_taken_for_infinity(store: TokenStore) -> None:
    block = torch.full((4, 8), 3e38)
    assert torch.isinf(block.sum())
    pipeline._refuse_poisoned(block, 0, store)


def test_a_batch_that_does_not_fit_is_split_and_the_budget_halves(
    encoder: Encoder,
    store: TokenStore,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner, sizes = encoder.hidden, []

    def small_device(batch: PackedBatch) -> torch.Tensor:
        sizes.append(batch.num_tokens)
        if batch.num_tokens > 130:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(batch)

    monkeypatch.setattr(encoder, "hidden", small_device)
    recorder = Recorder()
    with caplog.at_level(logging.WARNING, "ance_fast"):
        encode_spans(encoder, store, [(0, 400)], [recorder], batch_tokens=1000, window_rows=100)
    np.testing.assert_allclose(np.concatenate([block for _, block in recorder.blocks]), expected, atol=2e-6)
    said = [record.message for record in caplog.records]
    assert [message.rpartition(" ")[0] for message in said] == [
        f"out of memory on a batch of {failed} tokens: going on with {failed // 2} a"
        for failed in [size for size in sizes if size > 130]
    ]
    assert len(said) == 3  # not once for every batch that was packed already
    assert 60 < max(sizes[-20:]) <= 130  # later batches are packed smaller from the start
    monkeypatch.setattr(encoder, "hidden", lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(ConfigError, match="does not fit the memory of cpu by itself"):
        encode_spans(encoder, store, [(0, 400)], [Recorder()], batch_tokens=1000)


def test_bad_settings_are_refused(encoder: Encoder, store: TokenStore) -> None:
    with pytest.raises(ConfigError, match="batch_tokens is 0"):
        encode_spans(encoder, store, [(0, 1)], [Recorder()], batch_tokens=0)
    with pytest.raises(ConfigError, match="window_rows is -1"):
        encode_spans(encoder, store, [(0, 1)], [Recorder()], batch_tokens=9, window_rows=-1)
    with pytest.raises(ConfigError, match="nowhere to put"):
        encode_spans(encoder, store, [(0, 1)], batch_tokens=9)
    with pytest.raises(ConfigError, match=r"resident is \[3, 2\]; expected \[400, 32\]"):
        encode_spans(encoder, store, [(0, 1)], resident=torch.zeros(3, 2), batch_tokens=9)


def test_a_window_is_handed_over_before_the_next_span_is_asked_for(encoder: Encoder, store: TokenStore) -> None:
    recorder = Recorder()

    def spans() -> Iterator[tuple[int, int]]:
        yield 0, 30
        deadline = time.monotonic() + 20
        while not recorder.blocks and time.monotonic() < deadline:
            time.sleep(0.01)
        assert recorder.blocks  # what the next span waits for may be this
        yield 30, 60

    encode_spans(encoder, store, spans(), [recorder], batch_tokens=200)
    assert [start for start, _ in recorder.blocks] == [0, 30]


def test_a_run_that_is_stopped_leaves_no_window_half_encoded(encoder: Encoder, store: TokenStore) -> None:
    stopped, recorder = threading.Event(), Recorder()
    with pytest.raises(RingCancelled, match="the encoding was stopped"):
        encode_spans(
            encoder,
            store,
            [(0, 400)],
            [recorder],
            batch_tokens=100,
            window_rows=200,
            stopped=stopped,
            on_batch=lambda passages, tokens: stopped.set(),
        )
    assert not recorder.blocks


def test_no_rows_reach_the_sinks_of_an_empty_run(encoder: Encoder, store: TokenStore) -> None:
    recorder = Recorder()
    encode_spans(encoder, store, [], [recorder], batch_tokens=100)
    empty = TokenStore.from_texts([], encoder.tokenizer, max_length=32)
    encode_spans(encoder, empty, [], [recorder], batch_tokens=100)
    assert not recorder.blocks
    assert encode_matrix(encoder, empty, batch_tokens=100).shape == (0, encoder.dim)
