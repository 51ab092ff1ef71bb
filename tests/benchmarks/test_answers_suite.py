"""The suite of the answer matcher: what it compares is the same work."""

from __future__ import annotations

import json

import pytest

from benchmarks import answers


def test_it_writes_how_the_two_compare(tmp_path, capsys):
    sizes = ["--passages", "60", "--questions", "4", "--rounds", "2", "--threads", "2"]
    answers.main(["--out", str(tmp_path), *sizes])
    report = json.loads((tmp_path / "answers.json").read_text())
    ratio = report["python_over_matcher"]
    assert 0 < ratio["p20"] <= ratio["p50"] <= ratio["p80"]
    assert (report["pairs"], report["threads"]) == (400, 2)
    assert "times as long" in capsys.readouterr().out


def test_contestants_that_find_other_answers_are_not_compared(tmp_path, monkeypatch):
    problem = answers.Problem(40, 5, 1)
    found = problem.match()
    assert found == problem.match_by_python()
    assert 0 < sum(found) < len(found)
    monkeypatch.setattr(answers.Problem, "match_by_python", lambda self: [False] * 500)
    with pytest.raises(RuntimeError, match="find different answers"):
        answers.main(["--out", str(tmp_path), "--passages", "40", "--questions", "5"])
    assert not list(tmp_path.iterdir())
