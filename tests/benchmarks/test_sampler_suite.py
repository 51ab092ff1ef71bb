"""The suite of the sampler: what it compares is the same work."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import sampler


def test_it_writes_how_the_two_compare(tmp_path, capsys):
    sampler.main(["--out", str(tmp_path), "--queries", "300", "--candidates", "20", "--large", "500", "--rounds", "2"])
    report = json.loads((tmp_path / "sampler.json").read_text())
    ratio = report["numpy_over_sampler"]
    assert 0 < ratio["p20"] <= ratio["p50"] <= ratio["p80"]
    assert report["large"]["queries"] == 500
    assert set(report["large"]["seconds"]) == {"unite", "select", "draw"}
    assert "500 queries x 20" in capsys.readouterr().out


def test_contestants_that_keep_other_candidates_are_not_compared(monkeypatch):
    problem = sampler.Problem(50, 10)
    sampler.refuse_other_candidates(problem)
    monkeypatch.setattr(problem, "choose_by_numpy", lambda: np.ones((50, 10), dtype=bool))
    with pytest.raises(RuntimeError, match="keep different candidates"):
        sampler.refuse_other_candidates(problem)


def test_half_of_the_lists_hold_the_positive_and_neither_draws_it():
    problem = sampler.Problem(400, 30)
    positives = problem.examples.positive_rows[:, None]
    assert (problem.table.candidates == positives).any(axis=1).mean() >= 0.5
    for drawn in (problem.sample(), problem.sample_by_numpy()):
        assert not (drawn == positives).any()
