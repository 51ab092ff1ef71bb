from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import ir_datasets
import pytest

from ance_fast.data.irds import read_irds
from ance_fast.data.records import Document
from ance_fast.data.sources import load_corpus, load_dataset
from ance_fast.errors import DataError, MissingDependencyError


@pytest.fixture(autouse=True)
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`ours` has documents, `ours/dev` queries and judgements too, `ours/bare` queries alone."""
    (tmp_path / "docs.tsv").write_text("a\tone\nb\ttwo\n")
    (tmp_path / "queries.tsv").write_text("q\twhat is one\nunjudged\tx\n")
    (tmp_path / "qrels").write_text("q 0 a 2\nq 0 b 0\n")
    docs, queries, qrels = (str(tmp_path / name) for name in ("docs.tsv", "queries.tsv", "qrels"))
    known = dict(ir_datasets.registry._registered)
    known["ours"] = ir_datasets.create_dataset(docs)
    known["ours/dev"] = ir_datasets.create_dataset(docs, queries, qrels)
    known["ours/bare"] = ir_datasets.create_dataset(docs, queries)
    monkeypatch.setattr(ir_datasets.registry, "_registered", known)
    return


def test_documents_queries_and_judgements_are_read() -> None:
    for data in (load_dataset("irds:ours", split="dev"), load_dataset("irds:ours/dev"), read_irds("ours", "dev")):
        assert list(data.corpus) == list(data.corpus) == [Document("a", "one"), Document("b", "two")]
        assert data.queries == {"q": "what is one"}
        assert data.qrels == {"q": {"a": 2, "b": 0}}
        assert data.split == "dev"


def test_a_corpus_is_read_without_asking_for_judgements(tmp_path: Path) -> None:
    (tmp_path / "qrels").unlink()
    (tmp_path / "queries.tsv").unlink()
    assert [document.id for document in load_corpus("irds:ours/dev")] == ["a", "b"]
    assert load_dataset("irds:ours").split is None


def test_what_is_missing_is_said() -> None:
    with pytest.raises(DataError, match="irds:ours/none: ir_datasets knows no such .* start alike: ours, ours/dev"):
        load_dataset("irds:ours/none")
    with pytest.raises(DataError, match="irds:nothing-like-it: ir_datasets knows no such data set; see https"):
        load_corpus("irds:nothing-like-it")
    with pytest.raises(DataError, match="irds:ours/bare: has no qrels"):
        load_dataset("irds:ours", split="bare")
    assert load_dataset("irds:ours/bare").queries == {"q": "what is one", "unjudged": "x"}


def test_failures_of_ir_datasets_are_errors_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "docs.tsv").unlink()
    with pytest.raises(DataError, match="irds:ours: ir_datasets could not read it: FileNotFoundError"):
        list(load_corpus("irds:ours"))


def test_a_duplicate_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "docs.tsv").write_text("a\tone\nb\ttwo\na\tthree\n")
    with pytest.raises(DataError, match="irds:ours: document 2: document id 'a' again, first at irds:ours: document 0"):
        list(load_corpus("irds:ours"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ance_fast\[irds\]'"):
        read_irds("ours")
