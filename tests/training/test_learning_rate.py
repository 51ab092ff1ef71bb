"""The learning rate's course is transformers' and torch's own, once or for each generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from ance_fast.errors import ConfigError
from ance_fast.training import AnceConfig


def course(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def fresh(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def ours(queries: int, steps_per_epoch: int = 10, **settings: Any) -> list[float]:
    config = AnceConfig(output_dir="x", **settings)
    rate = config.rate_schedule(steps_per_epoch, queries)
    assert rate is not None
    return [config.learning_rate * rate.at(step) for step in range(config.max_steps)]


def test_the_cosine_ends_where_the_originals_does() -> None:
    optimizer = fresh(2e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 37, 1e-8)
    wanted = course(scheduler, optimizer, 37)
    found = ours(5, max_steps=37, learning_rate=2e-4, lr_scheduler="cosine", warmup_steps=0)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_cosine_may_rise_first() -> None:
    found = ours(5, max_steps=20, learning_rate=1.0, lr_scheduler="cosine", warmup_steps=4)
    assert found[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found[5:] == sorted(found[5:], reverse=True)


@pytest.mark.parametrize(("rise", "queries"), [(2, 9), (0, 9), (3, 4), (5, 4), (4, 4), (2, 100)])
def test_each_generation_has_a_schedule_of_its_own_as_long_as_it_has_queries(rise: int, queries: int) -> None:
    settings = {"max_steps": 25, "learning_rate": 1e-3, "warmup_steps": rise, "warmup": "refresh"}
    found = ours(queries, **settings, refresh_every=7, first_refresh=5, start="index")
    wanted: list[float] = []
    for begin, end in [(0, 5), (5, 12), (12, 19), (19, 25)]:
        optimizer = fresh(1e-3)
        wanted += course(get_linear_schedule_with_warmup(optimizer, rise, queries), optimizer, end - begin)
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_with_chunks_of_queries_the_last_generation_of_a_circle_is_longer() -> None:
    config = AnceConfig(
        output_dir="x",
        max_steps=100,
        refresh_every=10,
        warmup="refresh",
        order="triples",
        query_chunks=3,
        start="random",
    )
    rate = config.rate_schedule(10, 11)
    assert rate is not None
    # Generation 0 is not mined, so it has all queries.
    assert list(rate.horizons)[:5] == [11, 3, 5, 3, 3]
    shared = config.rate_schedule(10, 11, processes=2)
    assert shared is not None
    assert list(shared.horizons)[:5] == [10, 2, 4, 2, 2]
    assert [list(config.queries_of(number, 11)) for number in (1, 2, 3)] == [[3, 4, 5], [6, 7, 8, 9, 10], [0, 1, 2]]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_run_may_end_long_before_its_learning_rate_has_fallen(shape: str) -> None:
    whole = ours(5, max_steps=50, learning_rate=1e-3, lr_scheduler=shape, warmup_steps=4, schedule_steps=50)
    part = ours(5, max_steps=20, learning_rate=1e-3, lr_scheduler=shape, warmup_steps=4, schedule_steps=50)
    assert part == whole[:20]
    if shape == "linear":
        optimizer = fresh(1e-3)
        wanted = course(get_linear_schedule_with_warmup(optimizer, 4, 50), optimizer, 50)
        assert whole == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule_steps": 9}, "would be 0 before max_steps=10"),
        ({"schedule_steps": 20, "lr_scheduler": "constant"}, "lr_scheduler='constant': choose linear or cosine"),
        ({"schedule_steps": 20, "warmup": "refresh"}, "schedule_steps is for warmup='once'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnceConfig(output_dir="x", max_steps=10, **settings)


def test_the_stock_schedule_is_used_where_it_is_the_same() -> None:
    assert AnceConfig(output_dir="x").rate_schedule(10, 5) is None
    assert AnceConfig(output_dir="x", max_steps=50, warmup_steps=7).rise == 7
    assert AnceConfig(output_dir="x", max_steps=50, warmup_fraction=0.1).rise == 5
