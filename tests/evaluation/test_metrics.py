from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation import evaluate

DOCUMENTS = [f"d{n}" for n in range(8)]
runs = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "unjudged"]),
    st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3).map(float), max_size=8),
)
judgments = st.fixed_dictionaries(
    {query: st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 2), max_size=5) for query in ("q2", "q3")},
    optional={"q4": st.just({"d1": 0})},
).map(lambda qrels: {"q1": {"d0": 2, "d3": 1}, **qrels})


def ranking(scores: dict[str, float]) -> list[str]:
    return [doc for _, doc in sorted(((score, doc) for doc, score in scores.items()), reverse=True)]


def by_hand(scores: dict[str, float], grades: dict[str, int], cut: int) -> dict[str, float]:
    """nDCG (Järvelin, Kekäläinen 2002, linear gain), reciprocal rank and recall of one query."""
    order = ranking(scores)[:cut]
    gain = sum(max(0, grades.get(doc, 0)) / math.log2(rank + 2) for rank, doc in enumerate(order))
    ideal = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(grades.values(), reverse=True)[:cut]))
    relevant = [rank for rank, doc in enumerate(order) if grades.get(doc, 0) > 0]
    total = sum(grade > 0 for grade in grades.values())
    return {
        f"nDCG@{cut}": gain / ideal,
        f"RR@{cut}": 1 / (relevant[0] + 1) if relevant else 0.0,
        f"R@{cut}": len(relevant) / total,
    }


@settings(deadline=None, max_examples=30)
@given(runs, judgments, st.integers(1, 6))
def test_metrics_are_their_definitions_for_every_query_with_a_relevant_document(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], cut: int
) -> None:
    run["q1"] = run.get("q1", {"d3": 1.0})
    judged = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    result = evaluate(run, qrels, [f"nDCG@{cut}", f"RR@{cut}", f"R@{cut}"])
    assert result.num_queries == len(judged)
    expected = {query: by_hand(run.get(query, {}), grades, cut) for query, grades in judged.items()}
    for metric in result:
        assert result.per_query[metric] == pytest.approx({query: expected[query][metric] for query in judged})
        assert result[metric] == pytest.approx(sum(row[metric] for row in expected.values()) / len(judged))


def test_equal_scores_rank_by_falling_document_id_in_every_metric() -> None:
    run = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}}
    result = evaluate(run, {"q": {"b": 1}}, ["RR", "RR@10", "P@1", "P@2", "nDCG@10"])
    assert dict(result) == pytest.approx({"RR": 0.5, "RR@10": 0.5, "P@1": 0, "P@2": 0.5, "nDCG@10": 1 / math.log2(3)})


def test_scores_that_only_differ_in_double_precision_are_equal_as_in_trec_eval() -> None:
    run = {"q": {"z": 700.0, "a": 700.0 + 1e-9, "far": 1e300, "further": 1e301}}
    assert evaluate(run, {"q": {"a": 1}}, ["RR", "RR@10"]).mean == {"RR": 1 / 4, "RR@10": 1 / 4}
    assert evaluate(run, {"q": {"further": 1}}, ["RR"]).mean == {"RR": 1.0}
    assert evaluate(run, {"q": {"far": 1}}, ["RR"]).mean == {"RR": 1 / 2}


def test_queries_missing_from_the_run_count_zero_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    qrels = {"q1": {"d": 1}, "q2": {"d": 1}, "q3": {"d": 1}, "none": {"d": 0}}
    with caplog.at_level(logging.WARNING, logger="ance_fast"):
        result = evaluate({"q1": {"d": 1.0}}, qrels, ["RR@10"])
    assert result["RR@10"] == pytest.approx(1 / 3)
    assert result.missing == ("q2", "q3")
    assert [r.message for r in caplog.records] == ["2 of 3 judged queries are not in the run and count 0 (first: 'q2')"]


def test_metrics_keep_the_names_they_were_asked_by() -> None:
    result = evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, ["MRR@10", "RR@10", "Recall@100"])
    assert list(result) == ["MRR@10", "RR@10", "Recall@100"]
    assert len(result) == 3
    assert set(result.values()) == {1.0}


def test_one_metric_may_be_a_string_and_the_defaults_are_the_usual_three() -> None:
    assert list(evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, "AP")) == ["AP"]
    assert list(evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}})) == ["nDCG@10", "RR@10", "R@100"]


@pytest.mark.parametrize("metric", ["foo@3", "nDCG@x", "R@", "", "nDCG(", "RR@10; import os"])
def test_an_unknown_metric_is_quoted_with_examples(metric: str) -> None:
    with pytest.raises(ConfigError, match=r"nDCG@10, RR@10, R@100") as error:
        evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, ["RR@10", metric])
    assert repr(metric) in str(error.value)


def test_no_metric_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no metric"):
        evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}}, [])


@pytest.mark.parametrize(
    ("run", "qrels", "message"),
    [
        ({"1": {"d": 1.0}}, {"q1": {"d": 1}}, "'1'.*'q1'.*no query in common"),
        ({}, {"q1": {"d": 1}}, "no query in common"),
        ({"q1": {"d": 1.0}}, {"q1": {"d": 0}}, "none of the 1 judged queries has a relevant document"),
        ({"q1": {"d": 1.0}}, {}, "none of the 0 judged"),
        ({"q1": {"d": float("nan")}}, {"q1": {"d": 1}}, "query 'q1', document 'd': the score is NaN"),
    ],
)
def test_runs_and_judgments_that_cannot_be_compared_are_refused(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(run, qrels)


def test_files_give_what_their_contents_give(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("q1 Q0 d1 1 2.5 tag\nq1 Q0 d2 2 1.5 tag\n")
    (tmp_path / "qrels.txt").write_text("q1 0 d2 1\n")
    by_path = evaluate(str(tmp_path / "a.run"), tmp_path / "qrels.txt")
    assert dict(by_path) == dict(evaluate({"q1": {"d1": 2.5, "d2": 1.5}}, {"q1": {"d2": 1}}))
    assert by_path["RR@10"] == 0.5


def test_a_search_result_is_pointed_to_its_run() -> None:
    with pytest.raises(ConfigError, match=r"run is a list; .* to_run"):
        evaluate([1], {"q": {"d": 1}})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["q1", "q2", "unjudged"]),
        st.dictionaries(
            st.sampled_from(DOCUMENTS),
            st.sampled_from([-math.inf, -3.5, 0.0, -0.0, 700.0, 700.0 + 1e-9, 1e30, 1e300]),
            max_size=8,
        ),
    ),
    judgments,
    st.integers(1, 2),
)
def test_metrics_agree_with_trec_eval_also_on_ties_and_infinite_scores(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], min_grade: int
) -> None:
    names = ["ndcg_cut_10", "map_cut_10", "map", "recip_rank", "recall_5", "recall_1000", "P_5", "success_1"]
    run["q1"] = run.get("q1") or {"d3": 1.0}
    result = evaluate(run, qrels, names, min_grade=min_grade)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(names), relevance_level=min_grade)
    expected = evaluator.evaluate({query: dict(scores) for query, scores in run.items() if scores})
    for query, values in expected.items():
        if query in result.per_query["map"]:
            for name in names:
                assert result.per_query[name][query] == pytest.approx(values[name], abs=1e-12)
    for query in result.missing:
        assert {values[query] for values in result.per_query.values()} == {0.0}


def test_a_grade_of_the_name_wins_over_the_least_grade() -> None:
    run, qrels = {"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1, "b": 2}}
    metrics = ["RR@10", "RR(rel=1)@10", "nDCG@10"]
    result = evaluate(run, qrels, metrics, min_grade=2)
    assert dict(result) == {"RR@10": 0.5, "RR(rel=1)@10": 1.0, "nDCG@10": evaluate(run, qrels, "nDCG@10")["nDCG@10"]}
    with pytest.raises(ConfigError, match="min_grade=0: grades of 0 and below mean not relevant"):
        evaluate(run, qrels, min_grade=0)
