"""The token budget: measured where it pays, else the default of the device."""

from __future__ import annotations

import pytest
import torch

from ance_fast import Encoder, TokenStore
from ance_fast.data.packing import PackedBatch
from ance_fast.encoding import budget


def test_a_small_store_gets_the_default_without_a_measurement(
    encoder: Encoder, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "forward", lambda batch: pytest.fail("measured"))
    assert budget.measured_budget(encoder, store) == budget.default_budget(encoder.device) == 1024


@pytest.fixture
def measured_sizes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    clock = [0.0]

    def forward(batch: PackedBatch) -> torch.Tensor:
        sizes.append(batch.num_tokens)
        if batch.num_tokens > 900:
            raise torch.OutOfMemoryError("CUDA out of memory")
        # A fixed cost a batch and a cost a token that grows past 400 tokens: fastest at 200 to 400.
        clock[0] += 1.0 + 0.001 * batch.num_tokens + (5.0 if batch.num_tokens > 450 else 0.0)
        return torch.zeros(0)

    monkeypatch.setattr(encoder, "forward", forward)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(budget, "WORTH_BATCHES", 1)
    return sizes


def test_the_fastest_budget_is_taken_and_one_that_does_not_fit_is_dropped(
    encoder: Encoder,
    store: TokenStore,
    measured_sizes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(budget, "CANDIDATES", {"cpu": (100, 200, 400, 800, 1600)})
    with caplog.at_level("INFO"):
        assert budget.measured_budget(encoder, store) == 400
    assert "batches of 400 tokens, the smallest within 2 % of the fastest (measured tokens/s: 100: " in caplog.text
    assert max(measured_sizes) > 900  # tried, and left
    assert sum(size > 900 for size in measured_sizes) == 1


def test_batches_that_are_measured_are_full(
    encoder: Encoder, store: TokenStore, measured_sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "CANDIDATES", {"cpu": (200, 400)})
    budget.measured_budget(encoder, store)
    assert len(measured_sizes) == 2 * (budget.ROUNDS + 1)
    assert all(size >= 160 for size in measured_sizes)


def test_a_hair_faster_does_not_decide_for_a_larger_budget(
    encoder: Encoder, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def forward(batch: PackedBatch) -> torch.Tensor:
        clock[0] += batch.num_tokens * (1.0 if batch.num_tokens < 300 else 0.99)
        return torch.zeros(0)

    monkeypatch.setattr(encoder, "forward", forward)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(budget, "WORTH_BATCHES", 1)
    monkeypatch.setattr(budget, "CANDIDATES", {"cpu": (200, 400)})
    assert budget.measured_budget(encoder, store) == 200
