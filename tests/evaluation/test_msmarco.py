"""MS MARCO's measure, beside its own script written out, and the leaderboards' file form."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation import evaluate, evaluate_msmarco, write_ranks

Ranks = dict[int, dict[int, int]]
PASSAGES = list(range(1, 9))


def official(reference: dict[int, list[int]], candidates: Ranks, cut: int) -> float:
    """The published script: a list of 1,000 places a query, 0 where nothing was ranked."""
    total = 0.0
    for query, ranks in candidates.items():
        places = [0] * 1000
        for passage, rank in ranks.items():
            places[rank - 1] = passage
        if query in reference:
            first = next((place for place in range(cut) if places[place] in reference[query]), None)
            total += 0 if first is None else 1 / (first + 1)
    return total / len(reference)


def ranked(passages: list[int], ranks: set[int]) -> dict[int, int]:
    return dict(zip(passages, sorted(ranks), strict=False))


rankings = st.builds(ranked, st.lists(st.sampled_from(PASSAGES), unique=True), st.sets(st.integers(1, 14), min_size=8))


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.integers(1, 4), rankings, max_size=4),
    st.dictionaries(st.integers(1, 5), st.lists(st.sampled_from(PASSAGES), min_size=1, max_size=3), max_size=4),
)
def test_mrr_is_the_official_one_with_gaps_and_queries_on_one_side_only(
    tmp_path_factory: pytest.TempPathFactory, candidates: Ranks, reference: dict[int, list[int]]
) -> None:
    candidates[1], reference[1] = candidates.get(1) or {3: 2}, reference.get(1, [3])
    folder = tmp_path_factory.mktemp("msmarco")
    run, qrels = folder / "run.tsv", folder / "qrels.tsv"
    lines = [f"{q}\t{p}\t{rank}\n" for q, ranks in candidates.items() for p, rank in ranks.items()]
    run.write_text("".join(reversed(lines)))
    qrels.write_text("".join(f"{q}\t0\t{p}\t1\n" for q, some in reference.items() for p in dict.fromkeys(some)))
    result = evaluate_msmarco(run, qrels, cuts=(1, 10, 100))
    for cut in (1, 10, 100):
        assert result[f"MRR@{cut}"] == pytest.approx(official(reference, candidates, cut), abs=1e-12)
    assert result.queries_ranked == sum(1 for ranks in candidates.values() if ranks)
    assert result.num_queries == len(reference)


def test_scores_are_ranked_as_in_every_other_measure(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 2.5 t\nq Q0 b 2 2.5 t\nq Q0 c 3 9 t\n")
    qrels = {"q": {"a": 1}}
    assert evaluate_msmarco(path, qrels)["MRR@10"] == evaluate(path, qrels, "RR@10")["RR@10"] == 1 / 3
    assert evaluate_msmarco({"q": {"a": 1.0, "b": 1.0}}, qrels, [1, 2]).mean == {"MRR@1": 0.0, "MRR@2": 0.5}


def test_queries_on_one_side_are_told_and_only_relevant_judgements_count(caplog: pytest.LogCaptureFixture) -> None:
    qrels = {"q1": {"d": 1, "e": 0}, "q2": {"d": 2}, "q3": {"d": 0}}
    with caplog.at_level(logging.WARNING, logger="ance_fast"):
        result = evaluate_msmarco({"q1": {"e": 2.0, "d": 1.0}, "q3": {"d": 1.0}, "x": {"d": 1.0}}, qrels)
    assert dict(result) == {"MRR@10": 0.25, "MRR@100": 0.25}
    assert (result.missing, result.queries_ranked) == (("q2",), 3)
    assert [record.message for record in caplog.records] == [
        "1 judged queries are not in the run and count 0 (first: 'q2')",
        "1 queries of the run are not judged and left out (first: 'x')",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t7\t1\n1\t7\t2\n", ":2: document '7' comes twice for query '1'"),
        ("1\t7\t1\n2\t8\t1\n1\t8\t1\n", ":3: rank 1 of query '1' again, first at .*:1"),
        ("1\t7\t0\n", r":1: rank 0 is outside 1 \.\. 1000"),
        ("1\t7\t1\n1\t8\t1001\n", r":2: rank 1001 is outside 1 \.\. 1000"),
        ("1\t7\tfirst\n", ":1: rank 'first' is not a number"),
        ("1\t7\n", ":1: expected .* got 2 columns"),
        ("1 Q0 7 1 nan t\n", ":1: the score is NaN"),
        ("5\t7\t1\n", "first '5'.*first '1'.*no query in common"),
        ("", "no query in common"),
    ],
)
def test_a_submission_that_is_not_valid_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate_msmarco(tmp_path / "run.tsv", {"1": {"7": 1}})


def test_settings_and_judgements_of_no_use_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"MRR is cut at ranks 1 \.\. 1000"):
        evaluate_msmarco({"1": {"7": 1.0}}, {"1": {"7": 1}}, [0])
    with pytest.raises(DataError, match="none of the 1 judged queries has a relevant document"):
        evaluate_msmarco({"1": {"7": 1.0}}, {"1": {"7": 0}})


def test_a_leaderboard_file_has_ranks_and_measures_the_same(tmp_path: Path) -> None:
    run = {"q2": {"a": math.inf, "b": 1.0, "c": 1.0}, "q1": {}, "q3": {"d": -3.0}}
    write_ranks(tmp_path / "all.tsv", run)
    assert (tmp_path / "all.tsv").read_text() == "q2\ta\t1\nq2\tc\t2\nq2\tb\t3\nq3\td\t1\n"
    write_ranks(tmp_path / "two.tsv", tmp_path / "all.tsv", depth=2)
    assert (tmp_path / "two.tsv").read_text() == "q2\ta\t1\nq2\tc\t2\nq3\td\t1\n"
    qrels = {"q2": {"b": 1}, "q3": {"d": 1}}
    assert dict(evaluate_msmarco(tmp_path / "all.tsv", qrels)) == dict(evaluate_msmarco(run, qrels))


def test_what_a_leaderboard_file_cannot_say_is_refused_and_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the id 'a\\tb' is empty or holds tabs"):
        write_ranks(tmp_path / "x.tsv", {"q": {"a": 2.0, "a\tb": 1.0}})
    with pytest.raises(DataError, match="query 'q', document 'a': the score is NaN"):
        write_ranks(tmp_path / "x.tsv", {"q": {"a": math.nan}})
    with pytest.raises(ConfigError, match="depth 1001: a leaderboard takes 1 to 1000"):
        write_ranks(tmp_path / "x.tsv", {"q": {"a": 1.0}}, depth=1001)
    assert not list(tmp_path.iterdir())
