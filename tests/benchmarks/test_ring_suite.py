"""The ring's benchmark runs, compares what it moved, and says what it measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import ring

SMALL = ["--rows", "8", "--dims", "4", "--dtypes", "float16", "--megabytes", "0.001", "--rounds", "2"]
pytestmark = pytest.mark.timeout(60)


def test_every_contestant_is_measured_against_every_other(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ring, "HANDED_OVER", 5)
    ring.main([*SMALL, "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert result == json.loads((tmp_path / "ring.json").read_text())
    assert [row["contestant"] for row in result["rows"]] == list(ring.HOST)
    for row in result["rows"]:
        assert set(row["ratios"]) == {f"{name}, {clock}" for name in ring.HOST for clock in ("wall", "cpu")}
        assert row["ratios"][f"{row['contestant']}, wall"]["p50"] == 1
        assert row["gbps"]["wall"] > 0
    assert set(result["hand_over_us"]) == {"queue", "ring"}


def test_a_contestant_that_brings_other_rows_ends_the_run():
    stream = ring.Stream.make(4, 3, "float32", "cpu", slots=2, count=5)
    with pytest.raises(SystemExit, match="idler brought other rows than it was given"):
        ring.measure(stream, {"idler": lambda stream: lambda: None}, rounds=1)


@pytest.mark.parametrize("wrong", [["--rows", "0"], ["--megabytes", "0"], ["--slots", "-1"]])
def test_sizes_must_be_positive(wrong, capsys):
    with pytest.raises(SystemExit):
        ring.parse(wrong)
    assert "must be positive" in capsys.readouterr().err
