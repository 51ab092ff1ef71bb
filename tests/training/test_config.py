"""Settings are checked before anything is computed."""

from __future__ import annotations

import re

import pytest

from ance_fast.errors import ConfigError
from ance_fast.training import AnceConfig
from ance_fast.training.schedule import steps_of


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "triplet"}, "loss='triplet': choose pairwise, contrastive"),
        ({"start": "magic"}, "start='magic': choose"),
        ({"refresh": "sometimes"}, "refresh='sometimes': choose"),
        ({"max_steps": 0}, "max_steps=0: must be at least 1"),
        ({"topk": 0}, "topk=0: must be at least 1"),
        ({"topk": 3, "negatives_per_query": 4}, "topk=3 is below negatives_per_query=4"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be positive"),
        ({"refresh_every": "often"}, "refresh_every='often'"),
        ({"refresh_every": "0"}, "refresh_every='0'"),
        ({"first_refresh": "-3"}, "first_refresh='-3'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"encode_tokens": 0}, "encode_tokens=0: must be at least 1"),
        ({"kept_tokens": 64}, "kept_tokens counts tokens of chunks; set encode_tokens"),
        ({"encode_tokens": 64, "kept_tokens": 63}, "kept_tokens=63 is below encode_tokens=64"),
        ({"refresh_every": "0-10:5,5-:2"}, "begins within the one before it"),
        ({"rolling_slice": 5}, "rolling_slice=5 is for refresh=rolling, not for 'sync'"),
        (
            {"refresh": "none", "max_staleness": 5},
            "max_staleness=5 is for refresh=sync or rolling or async, not for 'none'",
        ),
        ({"refresh": "rolling", "max_refreshes": 2}, "max_refreshes=2 is for refresh=sync, not for 'rolling'"),
        ({"refresh": "rolling", "max_staleness": -1}, "max_staleness=-1: must be at least 0"),
        ({"refresh": "rolling", "rolling_slice": 0}, "rolling_slice=0: must be at least 1"),
        ({"refresh": "rolling", "rerank": 100}, "rerank=100: must be at least 200 (topk)"),
        ({"documents": "d.tsv", "document_separator": "#"}, "documents and document_separator both say"),
        ({"document_separator": ""}, "document_separator is empty"),
        ({"sampler": "ance,sources=index+tas-b"}, "sources=tas-b: a run makes index"),
        ({"candidates": {"tas-b": "x"}}, "candidates: nothing uses 'tas-b'"),
        ({"refresh_overlap": 1.5}, "refresh_overlap=1.5: must be above 0 and at most 1"),
        ({"optimizer": "sgd"}, "optimizer='sgd': choose adamw, lamb"),
        ({"optimizer": "lamb", "trainer_arguments": {"optim": "sgd"}}, "optim='sgd', but optimizer='lamb'"),
        ({"adam_epsilon": -1.0}, "adam_epsilon=-1.0: must not be negative"),
        ({"warmup_steps": -1}, "warmup_steps=-1: must be at least 0"),
        ({"warmup": "twice"}, "warmup='twice': choose once, refresh"),
        ({"warmup": "refresh", "lr_scheduler": "constant"}, "lr_scheduler='constant': choose linear or cosine"),
        ({"warmup": "refresh", "refresh": "none"}, "it is for refresh='sync' without refresh_overlap"),
        ({"warmup": "refresh", "refresh_overlap": 0.5}, "it is for refresh='sync' without refresh_overlap"),
        ({"order": "shuffled"}, "order='shuffled': choose queries, triples"),
        ({"positives": "first"}, "positives='first': choose all, last"),
        ({"query_chunks": 5}, "query_chunks=5 is for order='triples'"),
        ({"triples_per_query": 20}, "triples_per_query=20 is for order='triples'"),
        ({"order": "triples", "query_chunks": 0}, "query_chunks=0: must be at least 1"),
        ({"order": "triples", "refresh": "rolling"}, "refresh='rolling' has none that begins at a step"),
        ({"order": "triples", "negatives_per_query": 2}, "a triple has one negative; triples_per_query says"),
        ({"order": "triples", "triples_per_query": 20, "topk": 19}, "topk=19 is below triples_per_query=20"),
        (
            {"order": "triples", "query_chunks": 2, "sampler": "ance-tele"},
            "sources=momentum: the generation before has",
        ),
        ({"order": "triples", "query_chunks": 2, "refresh_overlap": 0.5}, "refresh_overlap keeps a generation, but"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        AnceConfig(output_dir="x", **settings)  # type: ignore[arg-type]


def test_intervals_are_steps_or_epochs() -> None:
    assert steps_of("500", 7, "x") == steps_of(500, 7, "x") == steps_of("500 steps", 7, "x") == 500
    assert steps_of("2 epochs", 7, "x") == 14


def test_refreshes_follow_the_schedule_and_never_fall_on_the_last_step() -> None:
    config = AnceConfig(output_dir="x", max_steps=100, refresh_every=20, first_refresh=40)
    assert config.refresh_steps(10) == [40, 60, 80]
    assert AnceConfig(output_dir="x", max_steps=100, refresh_every="2 epochs").refresh_steps(25) == [50]
    assert AnceConfig(output_dir="x", max_steps=100, refresh_every=10, max_refreshes=1).refresh_steps(9) == [10]
    assert AnceConfig(output_dir="x", max_steps=100, refresh="none").refresh_steps(1) == []


def test_checkpoints_come_with_refreshes_unless_told_otherwise() -> None:
    assert AnceConfig(output_dir="x", refresh_every="2 epochs").save_steps(30) == 60
    assert AnceConfig(output_dir="x", refresh_every=50, save_every="1 epoch").save_steps(30) == 30
    assert AnceConfig(output_dir="x", max_steps=100, refresh="none").save_steps(30) == 25
    assert AnceConfig(output_dir="x", max_steps=100, refresh_every="0-50:10,50-:25").save_steps(30) == 25
