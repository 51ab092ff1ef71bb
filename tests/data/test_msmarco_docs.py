from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ance_fast.data.msmarco_docs import read_msmarco_docs
from ance_fast.data.records import Document
from ance_fast.data.sources import load_corpus, load_dataset, refuse_missing
from ance_fast.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ["D1\thttp://a/1\tA title \tthe body  ", "D2\thttp://b/2\t\t", "D30\tu\tt\tx\ty"]
    (tmp_path / "msmarco-docs.tsv.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (tmp_path / "msmarco-doctrain-queries.tsv").write_text("5\tfive\n6\tsix\n7\tnot judged\n")
    (tmp_path / "msmarco-doctrain-qrels.tsv.gz").write_bytes(gzip.compress(b"5 0 D1 1\n6 0 D2 1\n"))
    (tmp_path / "msmarco-test2019-queries.tsv").write_text("8\teight\n9\tnine\n")
    (tmp_path / "2019qrels-docs.txt").write_text("8 0 D1 3\n8 0 D2 0\n")
    (tmp_path / "docleaderboard-queries.tsv").write_text("10\tten\n")
    return tmp_path


def test_a_document_is_its_url_title_and_body_around_separators(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(read_msmarco_docs(folder, None).corpus) == [
        Document("D1", "http://a/1 </s> A title </s> the body"),
        Document("D2", "http://b/2 </s>  </s> "),
        Document("D30", "u </s> t </s> x"),
    ]
    assert "1 lines have more columns, which are left out (first:" in caplog.text
    assert "msmarco-docs.tsv.gz:3)" in caplog.text
    for separator, text in {
        "<sep>": "http://a/1<sep>A title<sep>the body",  # what microsoft/ANCE's line joined, without blanks
        " <sep> ": "http://a/1 <sep> A title <sep> the body",
        "": "http://a/1A titlethe body",
    }.items():
        assert next(iter(load_corpus(f"msmarco-doc:{folder}?separator={separator}"))).text == text
    assert next(iter(load_corpus(f"msmarco-doc:{folder}?separator=[SEP]&max_characters=14"))).text == "http://a/1 [SE"


def test_a_text_is_cut_at_ten_thousand_characters_unless_told_otherwise(tmp_path: Path) -> None:
    body = "é" * 20_000
    (tmp_path / "msmarco-docs.tsv").write_text(f"D1\tu\tt\t{body}\n", encoding="utf-8")
    whole = f"u </s> t </s> {body}"
    assert [document.text for document in read_msmarco_docs(tmp_path, None).corpus] == [whole[:10_000]]
    assert [document.text for document in read_msmarco_docs(tmp_path, None, max_characters=0).corpus] == [whole]


def test_splits_have_the_names_of_their_files(folder: Path) -> None:
    train = load_dataset(f"msmarco-doc:{folder}", split="train")
    assert train.queries == {"5": "five", "6": "six"}
    assert train.qrels == {"5": {"D1": 1}, "6": {"D2": 1}}
    trec = read_msmarco_docs(folder, "test2019")
    assert (trec.queries, trec.qrels) == ({"8": "eight"}, {"8": {"D1": 3, "D2": 0}})
    unlabelled = load_dataset(folder, split="eval")
    assert (unlabelled.queries, unlabelled.qrels, unlabelled.split) == ({"10": "ten"}, {}, "eval")


def test_what_is_missing_or_malformed_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no split 'tset'; available: train, test2019, eval"):
        read_msmarco_docs(folder, "tset")
    with pytest.raises(DataError, match=r"none of msmarco-docdev-queries\.tsv"):
        read_msmarco_docs(folder)
    with pytest.raises(DataError, match=r"\?max_characters=ten: expected a number"):
        load_corpus(f"msmarco-doc:{folder}?max_characters=ten")
    with pytest.raises(ConfigError, match="at least 0"):
        read_msmarco_docs(folder, max_characters=-1)
    with pytest.raises(DataError, match=r"none of msmarco-docs\.tsv"):
        refuse_missing(f"msmarco-doc:{_empty(folder)}")
    (folder / "msmarco-docs.tsv").write_text("D1\tu\tt\tb\nD2\tu\tt\n")
    with pytest.raises(DataError, match=r"msmarco-docs\.tsv:2: expected 4 columns separated by tabs, got 3"):
        list(read_msmarco_docs(folder, None).corpus)


def _empty(folder: Path) -> Path:
    empty = folder / "empty"
    empty.mkdir()
    return empty
