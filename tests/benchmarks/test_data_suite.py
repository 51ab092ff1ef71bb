"""The suite of the data formats: what it compares are the same records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data


def test_rates_and_ratios_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.results, "describe_system", lambda *_: {})  # takes longer than all the rest
    sizes = ["--records", "60", "--length", "16", "--mean", "6", "--loop", "20", "--rounds", "2", "--threads", "1"]
    data.main(["--out", str(tmp_path), *sizes])
    report = json.loads((tmp_path / "data.json").read_text())
    assert set(report["records_per_second"]) == {"loop", "records", "store"}
    for ratio in report["over_loop"].values():
        assert 0 < ratio["p20"] <= ratio["p50"] <= ratio["p80"]
    assert "times the loop" in capsys.readouterr().out


def test_records_that_are_read_differently_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = data.Problem(tmp_path, 30, 8, 4, 10, 1)
    data.refuse_other_tokens(problem)
    found = problem.by_records()
    found.values[3] += 1
    monkeypatch.setattr(problem, "by_records", lambda: found)
    with pytest.raises(RuntimeError, match="is read differently"):
        data.refuse_other_tokens(problem)
