"""The stage table: what was measured, against which wall time, and which stage limits."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from ance_fast.encoding.stages import StageTimes


def test_stages_add_up_across_threads_and_stand_in_the_order_data_flows() -> None:
    times = StageTimes()
    with times.running():
        threads = [threading.Thread(target=lambda: [times.add("write", 0.25) for _ in range(4)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with times.on(torch.device("cpu"), "forward"):
            time.sleep(0.02)
        times.add("another", 0.5)
        times.count(10, 300)
    table = times.table()
    assert [row["stage"] for row in table] == ["forward", "write", "another"]
    assert table[1]["seconds"] == 3.0
    assert table[1]["share"] == pytest.approx(3.0 / times.wall)
    assert table[0]["seconds"] >= 0.02
    assert times.limiting == "write"
    times.lanes["write"] = 200
    assert times.limiting == "another"
    row = times.table()[1]
    assert row["share"] == pytest.approx(row["seconds"] / row["threads"] / times.wall) == 3.0 / times.wall / 200
    summary = times.summary()
    assert summary["passages_per_s"] == pytest.approx(10 / times.wall)
    assert summary["tokens"] == 300
    assert summary["limiting_stage"] == "another"


def test_runs_within_and_beside_each_other_count_once() -> None:
    times = StageTimes()

    def run() -> None:
        with times.running():
            time.sleep(0.05)

    with times.running():
        run()
    assert 0.05 <= times.wall < 0.1
    threads = [threading.Thread(target=run) for _ in range(3)]
    before = times.wall
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.05 <= times.wall - before < 0.15


def test_there_is_no_rate_where_there_was_nothing_to_do() -> None:
    times = StageTimes()
    with times.running(), times.host("tokenise"):
        pass
    summary = times.summary()
    assert (summary["passages"], summary["passages_per_s"], summary["tokens_per_s"]) == (0, None, None)


def test_time_counts_when_the_work_fails() -> None:
    times = StageTimes()
    with pytest.raises(OSError, match="disk"), times.running(), times.host("write"):
        raise OSError("disk")
    assert times.seconds["write"] >= 0
    assert times.wall > 0
    assert StageTimes().limiting is None
