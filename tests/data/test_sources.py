from __future__ import annotations

from pathlib import Path

import pytest

from ance_fast.data.sources import load_corpus, load_dataset
from ance_fast.errors import DataError


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    beir, msmarco, jsonl = tmp_path / "b", tmp_path / "m", tmp_path / "t.jsonl"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text('{"_id": "d", "text": "from beir"}\n')
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
    (beir / "qrels" / "test.tsv").write_text("q\td\t1\n")
    (beir / "qrels" / "train.tsv").write_text("q\td\t2\n")
    msmarco.mkdir()
    (msmarco / "collection.tsv").write_text("d\tfrom msmarco\n")
    (msmarco / "queries.dev.tsv").write_text("q\tx\n")
    (msmarco / "qrels.dev.tsv").write_text("q\t0\td\t1\n")
    jsonl.write_text('{"query": "x", "positives": [{"id": "d", "text": "from jsonl"}]}\n')
    return {"beir": beir, "msmarco": msmarco, "jsonl": jsonl}


@pytest.mark.parametrize("name", ["beir", "msmarco", "jsonl"])
def test_a_format_is_named_or_recognised(places: dict[str, Path], name: str) -> None:
    for spec in (f"{name}:{places[name]}", str(places[name]), places[name]):
        data = load_dataset(spec)
        assert [document.text for document in data.corpus] == [f"from {name}"]
        assert list(data.queries.values()) == ["x"]
        assert [document.text for document in load_corpus(spec)] == [f"from {name}"]


def test_the_split_is_passed_on(places: dict[str, Path]) -> None:
    assert load_dataset(places["beir"], split="train").qrels == {"q": {"d": 2}}


def test_a_corpus_needs_no_judgements(places: dict[str, Path]) -> None:
    (places["beir"] / "qrels" / "test.tsv").unlink()
    assert len(load_corpus(places["beir"])) == 1
    with pytest.raises(DataError, match="no split 'test'"):
        load_dataset(places["beir"])


def test_what_is_not_recognised_lists_the_forms(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    cases = {
        str(tmp_path): "neither corpus.jsonl nor collection.tsv",
        str(tmp_path / "a.csv"): "not a known data set file",
        str(tmp_path / "none"): "no such file, folder or format",
        "trex:/somewhere": "no such file, folder or format",
        "beir:": "nothing after the colon",
    }
    for spec, expected in cases.items():
        with pytest.raises(DataError) as caught:
            load_dataset(spec)
        assert expected in str(caught.value)
        assert "beir:DIR" in str(caught.value)


def test_a_missing_jsonl_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        load_dataset(tmp_path / "none.jsonl")
