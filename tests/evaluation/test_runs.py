"""Runs over documents from runs over their chunks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation import best_chunks, evaluate

chunks = st.builds("{}#{}".format, st.sampled_from(["a", "b#c", "D"]), st.integers(0, 3))


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(chunks | st.sampled_from(["a", "whole"]), st.integers(-2, 2).map(float), min_size=1))
def test_a_document_has_the_place_of_its_first_chunk(scores: dict[str, float]) -> None:
    scores["D#0"] = 0.5
    order = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
    found = best_chunks({"q": scores}, "#")["q"]
    documents = [name.rsplit("#", 1)[0] for name in order]
    assert list(found) == list(dict.fromkeys(documents))
    best = {}
    for name, document in zip(order, documents, strict=True):
        best[document] = max(best.get(document, -math.inf), scores[name])
    assert found == best


def test_a_run_file_is_measured_by_its_documents(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 a#1 1 3 t\nq Q0 a#0 2 2 t\nq Q0 b#7 3 1 t\n")
    assert evaluate(best_chunks(tmp_path / "run", "#"), {"q": {"b": 1}}, "RR@10")["RR@10"] == 0.5


def test_a_separator_that_no_id_holds_and_nan_are_refused() -> None:
    with pytest.raises(ConfigError, match="no document id of the run holds the separator '#', such as 'a'"):
        best_chunks({"p": {}, "q": {"a": 1.0}}, "#")
    with pytest.raises(ConfigError, match="the separator of documents and chunks is empty"):
        best_chunks({"q": {"a": 1.0}}, "")
    with pytest.raises(DataError, match="query 'q', document 'a#1': the score is NaN"):
        best_chunks({"q": {"a#0": 1.0, "a#1": math.nan}}, "#")
    with pytest.raises(ConfigError, match="run is a list; .* to_run"):
        best_chunks([1], "#")  # type: ignore[arg-type]
    assert best_chunks({"q": {}}, "#") == {"q": {}}
