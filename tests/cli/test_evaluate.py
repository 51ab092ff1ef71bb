"""`ance-fast evaluate`: every way to measure a run, from files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ance_fast.cli.main import app
from ance_fast.errors import ConfigError, DataError


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`evaluate("{tmp}/run", ...)`: the rows that the command prints; its error is raised."""

    # The command sets how much is said; other tests in this process are not to notice.
    monkeypatch.setattr(logging.getLogger("ance_fast"), "level", logging.WARNING)

    def rows(*arguments: str) -> Any:
        filled = [argument.format(tmp=tmp_path) for argument in arguments]
        result = CliRunner().invoke(app, ["--debug", "evaluate", *filled, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])

    return rows


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("1 Q0 a 1 9 t\n1 Q0 b 2 8 t\n2 Q0 b 1 7 t\n3 Q0 c 1 7 t\n")
    (tmp_path / "other").write_text("1\tb\t1\n2\ta\t11\n")
    (tmp_path / "chunks").write_text("1 Q0 a#1 1 9 t\n1 Q0 a#0 2 8 t\n1 Q0 b#0 3 7 t\n")
    (tmp_path / "qrels").write_text("1 0 b 1\n2 0 a 1\n2 0 b 0\n")
    (tmp_path / "passages.tsv").write_text("id\ttext\ttitle\na\tin Paris\tx\nb\tin Lyon\tParis\nc\tnowhere\tx\n")
    (tmp_path / "answers.jsonl").write_text(
        '{"query": "1", "answers": ["Lyon?", "lyon"]}\n{"query": "2", "answers": ["Paris"]}\n'
    )


def test_the_official_mrr_holes_and_a_leaderboard_file(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    first, second = evaluate("{tmp}/run", "{tmp}/other", "-q", "{tmp}/qrels", "--protocol", "msmarco", "--holes")
    assert [first[name] for name in ("queries", "ranked", "MRR@10", "MRR@100")] == [2, 3, 0.25, 0.25]
    assert (first["hole@10"], first["hole"]) == pytest.approx((1 / 3, 1 / 3))
    assert [second[name] for name in ("queries", "ranked", "MRR@10", "hole")] == [2, 2, 0.5, 0.0]
    assert second["MRR@100"] == pytest.approx((1 + 1 / 11) / 2)
    assert 0 < second["p_value"] <= 1
    (row,) = evaluate("{tmp}/run", "--leaderboard", "{tmp}/board.tsv", "--depth", "1")
    assert row == {"run": str(tmp_path / "run"), "leaderboard": str(tmp_path / "board.tsv")}
    assert (tmp_path / "board.tsv").read_text() == "1\ta\t1\n2\tb\t1\n3\tc\t1\n"


def test_chunks_count_as_their_document_and_grades_from_the_least_one(evaluate: Callable[..., Any]) -> None:
    (row,) = evaluate("{tmp}/chunks", "-q", "{tmp}/qrels", "--document-separator", "#", "--metrics", "RR@10,recall_2")
    assert (row["RR@10"], row["recall_2"]) == (0.25, 0.5)
    (row,) = evaluate("{tmp}/run", "-q", "{tmp}/qrels", "--min-grade", "2", "--metrics", "RR@10,RR(rel=1)@10")
    assert (row["RR@10"], row["RR(rel=1)@10"]) == (0.0, 0.25)


def test_answers_are_looked_for_in_the_passages_of_a_run(evaluate: Callable[..., Any]) -> None:
    arguments = ("{tmp}/run", "--answers", "{tmp}/answers.jsonl", "--passages", "{tmp}/passages.tsv")
    (row,) = evaluate(*arguments)
    assert [row[name] for name in ("queries", "top-1", "top-5", "MRR@20", "P@20")] == [2, 0.0, 0.5, 0.25, 1 / 40]
    (row,) = evaluate(*arguments, "--metrics", "top-2", "--match", "regex")
    assert row["top-2"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("{tmp}/run",), ConfigError, "nothing to measure by: give --qrels FILE"),
        (("{tmp}/run", "--holes", "--leaderboard", "{tmp}/x"), ConfigError, "nothing to measure by"),
        (("{tmp}/run", "--answers", "{tmp}/answers.jsonl"), ConfigError, "go together"),
        (
            ("{tmp}/run", "--answers", "{tmp}/answers.jsonl", "--passages", "{tmp}/gone.tsv"),
            DataError,
            "gone.tsv: no such file",
        ),
        (("{tmp}/run", "{tmp}/other", "--leaderboard", "{tmp}/x"), ConfigError, "--leaderboard takes one run, not 2"),
        (("{tmp}/run", "-q", "{tmp}/qrels", "--protocol", "official"), ConfigError, "choose trec or msmarco"),
        (
            ("{tmp}/run", "-q", "{tmp}/qrels", "--protocol", "msmarco", "--metrics", "AP"),
            ConfigError,
            "has MRR@K alone",
        ),
        (("{tmp}/run", "-q", "{tmp}/qrels", "--answers", "x", "--passages", "y"), ConfigError, "leave --qrels"),
        (
            ("{tmp}/run", "-q", "{tmp}/qrels", "--document-separator", "%"),
            ConfigError,
            "holds the separator '%', such as 'a'",
        ),
        (("{tmp}/run", "-q", "{tmp}/qrels", "--document-separator", ""), ConfigError, "documents and chunks is empty"),
        (("{tmp}/run", "-q", "{tmp}/qrels", "--match", "bogus"), ConfigError, "--match bogus goes with --answers"),
        (("{tmp}/run", "-q", "{tmp}/qrels", "--depth", "9"), ConfigError, "--depth 9 goes with --leaderboard"),
        (
            ("{tmp}/run", "--answers", "{tmp}/answers.jsonl", "--passages", "{tmp}/passages.tsv", "--min-grade", "3"),
            ConfigError,
            "--min-grade 3 goes with --qrels",
        ),
        (("{tmp}/passages.tsv", "-q", "{tmp}/qrels"), DataError, "passages.tsv:1: rank 'title' is not a number"),
    ],
)
def test_what_cannot_be_measured_is_one_message(
    evaluate: Callable[..., Any], arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        evaluate(*arguments)
