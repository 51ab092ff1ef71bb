"""The share of what a run retrieves that nobody judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation import hole_rates

DOCUMENTS = [f"d{number}" for number in range(6)]
scores = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3).map(float), max_size=6)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from(["q1", "q2", "x"]), scores),
    st.fixed_dictionaries(
        {query: st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 2)) for query in ("q1", "q2")}
    ),
    st.integers(1, 7),
)
def test_rates_count_the_documents_of_all_judged_queries_together(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], cut: int
) -> None:
    run["q1"] = run.get("q1") or {"d0": 1.0}
    holes, total, every_hole, every = 0, 0, 0, 0
    for query in ("q1", "q2"):
        order = sorted(run.get(query, {}), key=lambda name: (run[query][name], name), reverse=True)
        for rank, name in enumerate(order):
            every += 1
            every_hole += name not in qrels[query]
            total += rank < cut
            holes += rank < cut and name not in qrels[query]
    result = hole_rates(run, qrels, cut)
    assert (result.at_cut, result.overall) == pytest.approx((holes / total, every_hole / every), abs=1e-12)
    assert (result.cut, result.queries) == (cut, len(run.keys() & {"q1", "q2"}))


def test_files_give_what_their_contents_give(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q\ta\t1\nq\tb\t2\nq\tc\t3\n")
    (tmp_path / "qrels").write_text("q 0 b 0\n")
    result = hole_rates(tmp_path / "run", tmp_path / "qrels", cut=2)
    assert (result.at_cut, result.overall) == (0.5, pytest.approx(2 / 3))


def test_what_has_no_rate_is_refused() -> None:
    with pytest.raises(DataError, match="retrieves nothing for any judged query"):
        hole_rates({"x": {"a": 1.0}, "q": {}}, {"q": {"a": 1}})
    with pytest.raises(DataError, match="query 'q', document 'a': the score is NaN"):
        hole_rates({"q": {"a": math.nan}}, {"q": {"a": 1}})
    with pytest.raises(ConfigError, match="cut 0"):
        hole_rates({"q": {"a": 1.0}}, {"q": {"a": 1}}, 0)
