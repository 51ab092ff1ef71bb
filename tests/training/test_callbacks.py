"""The line that a refresh is told by."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from ance_fast.training.callbacks import ProgressCallback


@pytest.mark.parametrize("first", [True, False])
def test_a_refresh_is_one_line_of_what_matters_from_the_first_process(
    caplog: pytest.LogCaptureFixture, first: bool
) -> None:
    state: Any = SimpleNamespace(is_world_process_zero=first, global_step=7)
    logs = {"generation": 2.0, "eval_RR@10": 0.25, "loss_fresh": 1.5, "stale_margin": 1.0, "filtered_rank": 0.5}
    arguments: Any = None
    with caplog.at_level(logging.INFO, logger="ance_fast"):
        ProgressCallback().on_log(arguments, state, arguments, logs=logs)
        ProgressCallback().on_log(arguments, state, arguments, logs={"loss": 1.0})
    expected = ["step 7: generation 2  RR@10 0.250  loss_fresh 1.50"]
    assert [record.getMessage() for record in caplog.records] == (expected if first else [])
