"""Chunks that are encoded twice against chunks that keep their graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from ance_fast import Encoder
from ance_fast.data.packing import PackedBatch, Packer, ragged
from ance_fast.errors import ConfigError
from ance_fast.training.grad_cache import GradCache, RandomState, check_strategy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tiny: Callable[..., Path]) -> Encoder:
    """Dropout 0.1 in every layer, as the configuration class has it."""
    return Encoder.load(str(tiny("Bert", num_hidden_layers=2)), device="cpu", normalize=True)


def chunks_of(lengths: list[int], budget: int) -> list[PackedBatch]:
    rng = np.random.default_rng(len(lengths))
    packer = Packer([ragged([rng.integers(1000, 2000, length).tolist() for length in lengths])])
    return list(packer.batches(token_budget=budget, window=len(lengths)))


def coupled_loss(embeddings: Tensor) -> Tensor:
    """Every embedding meets every other, so no chunk's gradient is its own affair."""
    return (5 * embeddings @ embeddings.T).logsumexp(1).square().mean()


def step(
    encoder: nn.Module,
    chunks: list[PackedBatch],
    kept_tokens: int | None,
    *,
    device: torch.device = CPU,
    factor: float = 1.0,
    seed: int = 3,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss, the gradients of all weights, and what the generators give next."""
    encoder.zero_grad()
    torch.manual_seed(seed)
    cache = GradCache(lambda chunk: encoder(chunk.to(device)), device, kept_tokens=kept_tokens)
    loss = coupled_loss(cache.embed(chunks))
    (loss * factor).backward()
    cache.backward()
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, torch.cat([torch.rand(4), torch.rand(4, device=device).cpu()])


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    assert len(wanted) > 20
    # Keys' biases have no gradient but rounding: what is small is small against the largest.
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, **{"rtol": 1e-4, "atol": 1e-6 * largest, **tolerance})


LENGTHS = [30, 22, 22, 17, 9, 9, 9, 5, 4, 3]
"""In chunks of 40 tokens: 30, 22, 39, 31, 8."""


@pytest.mark.parametrize("kept_tokens", [1, 40, 60, 100])
def test_with_dropout_on_the_gradient_is_that_of_all_graphs_kept(encoder: Encoder, kept_tokens: int) -> None:
    encoder.train()
    chunks = chunks_of(LENGTHS, 40)
    loss, wanted, drawn = step(encoder, chunks, None)
    again, found, drawn_again = step(encoder, chunks, kept_tokens)
    assert torch.equal(loss, again)
    assert_same(found, wanted)
    assert torch.equal(drawn, drawn_again), "encoding a second time must draw nothing"
    assert not torch.equal(loss, step(encoder, chunks, kept_tokens, seed=4)[0]), "dropout is off"


def test_with_dropout_off_the_gradient_is_that_of_one_pass_over_the_batch(encoder: Encoder) -> None:
    encoder.eval()
    loss, wanted, _ = step(encoder, chunks_of(LENGTHS, 10**6), None)
    again, found, _ = step(encoder, chunks_of(LENGTHS, 40), 1)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=0.0)
    assert_same(found, wanted)


def test_what_multiplies_the_loss_multiplies_the_gradient(encoder: Encoder) -> None:
    """Loss scaling and gradient accumulation, which the trainer puts around the loss."""
    encoder.train()
    chunks = chunks_of(LENGTHS, 40)
    wanted = {name: 1024 * gradient for name, gradient in step(encoder, chunks, 40)[1].items()}
    assert_same(step(encoder, chunks, 40, factor=1024.0)[1], wanted)


@pytest.mark.parametrize("outside", [False, True])
def test_under_autocast_every_weight_gets_its_gradient(encoder: Encoder, outside: bool) -> None:
    """Also with one autocast around the whole batch, which keeps its casts of the weights until it ends."""
    encoder.train()
    chunks = chunks_of(LENGTHS, 40)

    def gradients(kept_tokens: int | None) -> dict[str, Tensor]:
        def encode(chunk: PackedBatch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return encoder(chunk)

        encoder.zero_grad()
        torch.manual_seed(3)
        cache = GradCache(encode, CPU, kept_tokens=kept_tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            embeddings = cache.embed(chunks)
        assert embeddings.dtype == torch.float32
        coupled_loss(embeddings).backward()
        cache.backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    wanted = gradients(None)
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    assert_same(gradients(40), wanted, rtol=0.05, atol=0.01 * largest)


class _Live(torch.autograd.Function):
    """A stand-in encoder's graph, which counts the tokens it holds."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, chunk: PackedBatch, count: Callable[[int], None]) -> Tensor:
        ctx.release = lambda: count(-chunk.num_tokens)
        count(chunk.num_tokens)
        return weight.expand(len(chunk), 1).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.release()
        return gradient.sum(0, keepdim=True), None, None


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=20),
    budget=st.integers(1, 60),
    more=st.integers(0, 100),
)
def test_graphs_stay_within_the_budget_and_only_chunks_beyond_it_are_encoded_twice(
    lengths: list[int], budget: int, more: int
) -> None:
    weight = torch.ones(1, 1, requires_grad=True)
    held, most, encoded = 0, 0, 0

    def count(tokens: int) -> None:
        nonlocal held, most
        held += tokens
        most = max(most, held)

    def encode(chunk: PackedBatch) -> Tensor:
        nonlocal encoded
        encoded += chunk.num_tokens
        if not torch.is_grad_enabled():
            return weight.expand(len(chunk), 1).clone()
        out: Tensor = _Live.apply(weight, chunk, count)
        return out

    chunks = chunks_of(lengths, budget)
    cache = GradCache(encode, CPU, kept_tokens=budget + more)
    embeddings = cache.embed(chunks)
    assert encoded == sum(lengths)
    (embeddings * torch.arange(1.0, len(lengths) + 1).unsqueeze(1)).sum().backward()
    cache.backward()
    assert weight.grad is not None
    assert weight.grad.item() == len(lengths) * (len(lengths) + 1) / 2
    largest = max(chunk.num_tokens for chunk in chunks)
    assert held == 0
    assert most <= max(budget + more, largest)
    tokens = [chunk.num_tokens for chunk in chunks]
    kept = max([1, *(n for n in range(len(tokens) + 1) if sum(tokens[:n]) <= budget + more)])
    assert encoded == sum(tokens) + sum(tokens[kept:])


def test_without_gradients_nothing_is_left_to_do(encoder: Encoder) -> None:
    encoder.eval()
    calls = []

    def encode(chunk: PackedBatch) -> Tensor:
        calls.append(chunk)
        return encoder(chunk)

    cache = GradCache(encode, CPU, kept_tokens=1)
    chunks = chunks_of(LENGTHS, 40)
    with torch.no_grad():
        embeddings = cache.embed(chunks)
    cache.backward()
    assert len(calls) == len(chunks)
    assert not embeddings.requires_grad


@pytest.fixture
def process_group() -> Iterator[None]:
    """Rank 0 of two, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("kept_tokens", [None, 1, 60])
def test_ranks_exchange_the_whole_gradient_once_a_batch(
    encoder: Encoder, process_group: None, kept_tokens: int | None, unused: bool
) -> None:
    encoder.train()
    chunks = chunks_of(LENGTHS, 40)
    _, wanted, _ = step(encoder, chunks, None)
    exchanged: list[Tensor] = []

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, and strings are not types
        exchanged.append(bucket.buffer().clone())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel = DistributedDataParallel(encoder, find_unused_parameters=unused)
    parallel.register_comm_hook(None, hook)

    def batch() -> None:
        torch.manual_seed(3)
        cache = GradCache(parallel, CPU, kept_tokens=kept_tokens, no_sync=parallel.no_sync)
        coupled_loss(cache.embed(chunks)).backward()
        cache.backward()

    encoder.zero_grad()
    with parallel.no_sync():
        batch()
    assert not exchanged, "a batch that only accumulates is not exchanged"
    encoder.zero_grad()
    for _ in range(2):  # the second time with the buckets that DDP makes in the order of the first
        exchanged.clear()
        encoder.zero_grad()
        batch()
        assert sum(part.numel() for part in exchanged) == sum(gradient.numel() for gradient in wanted.values())
        total = sum(gradient.double().square().sum() for gradient in wanted.values())
        assert sum(part.double().square().sum() for part in exchanged).item() == pytest.approx(total.item(), rel=1e-4)
        assert_same({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}, wanted)


def test_the_generators_of_the_host_and_the_device_are_replayed_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.Generator().manual_seed(5)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda which: device.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, which: device.set_state(state))

    def draw() -> list[float]:
        return [torch.rand(1).item(), torch.rand(1, generator=device).item()]

    state = RandomState(torch.device("cuda", 0))
    first, second = draw(), draw()
    with state.replayed():
        assert draw() == first
    third = draw()
    with contextlib.suppress(ZeroDivisionError), state.replayed():
        assert [draw(), draw(), draw()] == [first, second, third]
        raise ZeroDivisionError
    assert draw() not in (first, second, third)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_with_dropout_on_the_gradient_is_that_of_all_graphs_kept(
    tiny: Callable[..., Path], dtype: str
) -> None:
    encoder = Encoder.load(str(tiny("Bert")), device="cuda", dtype=dtype, normalize=True).train()
    chunks = chunks_of(LENGTHS, 40)
    loss, wanted, drawn = step(encoder, chunks, None, device=encoder.device)
    again, found, drawn_again = step(encoder, chunks, 40, device=encoder.device)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=0.0)
    loose = (
        {} if dtype == "float32" else {"rtol": 0.05, "atol": 0.02 * max(g.abs().max().item() for g in wanted.values())}
    )
    assert_same(found, wanted, **loose)
    assert torch.equal(drawn, drawn_again)


def test_strategies_that_need_the_gradient_in_one_piece_are_refused(tmp_path: Path) -> None:
    def arguments(**settings: Any) -> TrainingArguments:
        return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)

    for allowed in ("NO", "MULTI_GPU", "MULTI_CPU"):
        check_strategy(arguments(), allowed)
    with pytest.raises(ConfigError, match="DEEPSPEED back-propagates in one piece"):
        check_strategy(arguments(), "DEEPSPEED")
    with pytest.raises(ConfigError, match="leave it out"):
        check_strategy(arguments(ddp_static_graph=True), "MULTI_GPU")
    with pytest.raises(ConfigError, match="adalomo.* changes weights while it back-propagates"):
        check_strategy(arguments(optim="adalomo"), "NO")
