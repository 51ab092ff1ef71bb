"""Buckets and padding of captured launches, on the CPU with a capture that only calls again; on a GPU with the real."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ance_fast import Encoder
from ance_fast.data.packing import PackedBatch, Packer, ragged
from ance_fast.errors import ConfigError
from ance_fast.models.bert_packed import BertStack, bert_stack
from ance_fast.models.cuda_graphs import Bucket, GraphedStack, StaticInputs

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=40).filter(any)


def called_again(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What a capture does, without a graph: the result of each call goes to where the first one's lies."""
    out = run().clone()

    def again() -> None:
        out.copy_(run())

    return again, out


def packed(lengths: list[int], seed: int = 0) -> PackedBatch:
    draw = np.random.default_rng(seed)
    return Packer([ragged([draw.integers(5, 900, n).tolist() for n in lengths])]).pack(np.arange(len(lengths)))


def arguments(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, int]:
    return batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen


@pytest.fixture(scope="module")
def stack(tiny: Callable[..., Path]) -> BertStack:
    made = bert_stack(Encoder.load(str(tiny("Bert", num_attention_heads=2))).backbone.model)
    assert made is not None
    return made


@given(st.integers(1, 40_000), st.integers(1, 5_000), st.integers(1, 600), st.booleans())
def test_a_bucket_has_room_for_the_batch_and_its_padding(
    tokens: int, sequences: int, longest: int, cls_only: bool
) -> None:
    bucket = Bucket.of(tokens, sequences, longest, cls_only)
    assert tokens <= bucket.tokens < tokens + max(64, tokens / 8)
    assert bucket.longest >= longest
    assert (bucket.sequences - sequences) * bucket.longest >= bucket.tokens - tokens
    assert bucket.tokens % 64 == 0
    assert Bucket.of(bucket.tokens, sequences, longest, cls_only).tokens == bucket.tokens


def test_full_batches_share_a_bucket() -> None:
    assert len({Bucket.of(tokens, 270, 60, False) for tokens in range(16384 - 512, 16385)}) == 1


@given(st.lists(LENGTHS, min_size=1, max_size=3))
def test_static_inputs_hold_the_batch_and_pad_with_sequences_that_are_not_too_long(batches: list[list[int]]) -> None:
    largest = max((Bucket.of(sum(lengths), len(lengths), 70, False) for lengths in batches), key=lambda b: b.tokens)
    bucket = Bucket(largest.tokens, 64, 128, False)
    inputs = StaticInputs(bucket, torch.device("cpu"))
    for seed, lengths in enumerate(batches):
        batch = packed(lengths, seed)
        inputs.fill(batch.input_ids, batch.position_ids, batch.cu_seqlens)
        assert torch.equal(inputs.input_ids[: sum(lengths)], batch.input_ids)
        assert torch.equal(inputs.position_ids[: sum(lengths)], batch.position_ids)
        assert torch.equal(inputs.cu_seqlens[: len(lengths) + 1], batch.cu_seqlens)
        steps = inputs.cu_seqlens.diff()
        assert inputs.cu_seqlens[-1] == bucket.tokens
        assert (steps >= 0).all()
        assert (steps <= 128).all()


@pytest.mark.parametrize("cls_only", [False, True])
def test_a_padded_batch_gives_what_the_stack_gives(stack: BertStack, cls_only: bool) -> None:
    graphed = GraphedStack(stack, called_again)
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for seed in range(24):
            lengths = draw.integers(0, 71, draw.integers(1, 12)).tolist()
            batch = packed([*lengths, 3], seed)
            expected = stack(*arguments(batch), cls_only=cls_only).clone()
            found = graphed(*arguments(batch), cls_only=cls_only)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert graphed._graphs


def test_a_shape_is_captured_when_it_comes_again_and_both_results_have_their_own(stack: BertStack) -> None:
    captures = []

    def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        captures.append(run)
        return called_again(run)

    graphed, batch = GraphedStack(stack, capture), packed([9, 4])
    with torch.no_grad():
        for cls_only, wanted in ((False, 0), (True, 0), (False, 1), (True, 2), (False, 2), (True, 2)):
            graphed(*arguments(batch), cls_only=cls_only)
            assert len(captures) == wanted
        graphed(*arguments(packed([60, 60, 8])))
        assert len(captures) == 2


def test_the_number_of_graphs_is_bounded(stack: BertStack) -> None:
    graphed = GraphedStack(stack, called_again, max_graphs=2)
    with torch.no_grad():
        for lengths in ([5], [70], [70, 70], [70, 70, 70], [5]):
            batch = packed(lengths)
            for _ in range(3):
                expected = stack(*arguments(batch)).clone()
                torch.testing.assert_close(graphed(*arguments(batch)), expected, atol=1e-6, rtol=1e-5)
    assert len(graphed._graphs) == 2


def test_batches_larger_than_any_bucket_run_uncaptured(stack: BertStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ance_fast.models.cuda_graphs.MOST_TOKENS", 64)
    graphed = GraphedStack(stack, called_again)
    with torch.no_grad():
        for _ in range(3):
            graphed(*arguments(packed([40, 40])))
    assert not graphed._graphs


def fails(error: Exception) -> Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]:
    def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise error

    return capture


def test_a_failed_capture_leaves_the_work_to_the_stack_and_says_so(
    stack: BertStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ANCE_FAST_STRICT", raising=False)
    graphed, batch = GraphedStack(stack, fails(RuntimeError("not permitted while capturing"))), packed([5, 6])
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        expected = stack(*arguments(batch)).clone()
        for _ in range(4):
            torch.testing.assert_close(graphed(*arguments(batch)), expected, atol=0, rtol=0)
    assert "no CUDA graphs, the capture of Bucket(tokens=64" in graphed.reason
    assert "not permitted while capturing" in graphed.reason
    assert len(caplog.records) == 1


def test_a_failed_capture_is_an_error_in_strict_mode(stack: BertStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCE_FAST_STRICT", "1")
    graphed, batch = GraphedStack(stack, fails(RuntimeError("not permitted"))), packed([5, 6])
    with torch.no_grad():
        graphed(*arguments(batch))
        with pytest.raises(ConfigError, match=r"the capture of Bucket.*not permitted; unset ANCE_FAST_STRICT"):
            graphed(*arguments(batch))


def test_running_out_of_memory_is_not_a_failed_capture(stack: BertStack) -> None:
    graphed, batch = GraphedStack(stack, fails(torch.OutOfMemoryError("full"))), packed([5, 6])
    with torch.no_grad():
        graphed(*arguments(batch))
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            graphed(*arguments(batch))
    assert graphed.max_graphs > 0


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("architecture", ["Bert", "Roberta"])
def test_graphs_and_plug_in_path_agree_on_a_gpu(
    tiny: Callable[..., Path], architecture: str, pooling: str, dtype: str
) -> None:
    folder = str(tiny(architecture, num_attention_heads=2))
    exact = Encoder.load(folder, device="cpu", pooling=pooling)
    encoder = Encoder.load(folder, device="cuda", dtype=dtype, pooling=pooling)
    assert encoder.info()["stack"] == "fused"
    for seed in range(6):
        batch = packed([70, 33, 33, 2, 1 + seed % 2], seed)
        with torch.no_grad():
            expected, plain = exact(batch), encoder(batch.to("cuda")).cpu()
        with encoder.backbone.inference():
            fused = encoder(batch.to("cuda")).cpu()
        rounding = 4 * torch.finfo(getattr(torch, dtype)).eps * expected.abs().max()
        assert (fused - expected).abs().max() <= 2 * (plain - expected).abs().max() + rounding
    assert isinstance(encoder.backbone._stack, GraphedStack)
    assert encoder.backbone._stack._graphs


@gpu
def test_graphs_see_weights_that_change_in_place(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)), device="cuda", dtype="float16")
    batch, found = packed([9, 4]).to("cuda"), []
    for _ in range(2):
        for _ in range(3):
            with encoder.backbone.inference():
                found.append(encoder(batch).clone())
        with torch.no_grad():
            for parameter in encoder.backbone.model.encoder.layer.parameters():
                parameter.mul_(1.5)
    torch.testing.assert_close(found[2], found[1], atol=2e-3, rtol=2e-2)
    assert (found[5] - found[2]).abs().max() > 1e-2
    with torch.no_grad():
        for parameter in encoder.backbone.model.encoder.layer.parameters():
            parameter.div_(1.5)
        torch.testing.assert_close(found[5], encoder(batch), atol=1e-2, rtol=5e-2)


@gpu
def test_a_replay_does_not_wait_for_the_device(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)), device="cuda", dtype="float16", pooling="cls")
    batch = packed([9, 4]).to("cuda")
    with encoder.backbone.inference():
        for _ in range(3):
            encoder(batch)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            encoder(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@gpu
def test_graphs_of_many_shapes_share_their_memory(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)), device="cuda", dtype="float16")
    with encoder.backbone.inference():
        for _ in range(2):
            encoder(packed([70] * 200).to("cuda"))
        before = torch.cuda.memory_reserved()
        for sequences in (100, 50, 25):
            for _ in range(2):
                encoder(packed([70] * sequences).to("cuda"))
        assert torch.cuda.memory_reserved() <= 1.5 * before
