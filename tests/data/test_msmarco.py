from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ance_fast.data.msmarco import read_msmarco, read_text_triples, read_triples
from ance_fast.data.records import Document, TextTriple
from ance_fast.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "collection.tsv").write_text("0\tzero\n1\tone\ttab\n2\t\n")
    (tmp_path / "queries.dev.tsv").write_text("9\tnine\n8\teight\n7\tseven\n")
    (tmp_path / "qrels.dev.small.tsv").write_text("7\t0\t1\t1\n9\t0\t0\t1\n")
    (tmp_path / "queries.train.tsv.gz").write_bytes(gzip.compress(b"5\tfive\n6\tsix\n"))
    (tmp_path / "qrels.train.tsv.gz").write_bytes(gzip.compress(b"5\t0\t1\t1\n6\t0\t1\t1\n"))
    (tmp_path / "qidpidtriples.train.full.2.tsv").write_text("5\t1\t0\n5\t1\t2\n5\t1\t0\n77\t1\t0\n")
    return tmp_path


def test_the_small_dev_split_is_found_under_its_short_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = read_msmarco(folder)
    assert list(data.corpus) == [Document("0", "zero"), Document("1", "one"), Document("2", "")]
    assert "1 lines have more columns, which are left out" in caplog.text
    assert data.queries == {"9": "nine", "7": "seven"}
    assert data.qrels == {"7": {"1": 1}, "9": {"0": 1}}
    assert data.negatives is None
    assert data.split == "dev"


def test_triples_become_distinct_negatives_of_the_judged_queries(folder: Path) -> None:
    assert read_msmarco(folder, "train").negatives == {"5": ["0", "2"]}
    assert read_msmarco(folder, "train", max_negatives=1).negatives == {"5": ["0"]}
    assert read_msmarco(folder, "train", triples=False).negatives is None


def test_without_a_split_only_the_corpus_is_read(folder: Path) -> None:
    data = read_msmarco(folder, None)
    assert len(data.corpus) == 3
    assert (data.queries, data.qrels) == ({}, {})


def test_a_missing_split_lists_those_there_are(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'eval' \(looked for .*\); available: dev\.small, train"):
        read_msmarco(folder, "eval")
    (folder / "collection.tsv").unlink()
    with pytest.raises(DataError, match=r"none of collection\.tsv, collection\.tsv\.gz, collection\.tsv\.zst found"):
        read_msmarco(folder)


@pytest.mark.parametrize(
    ("line", "expected"), [("no tab", "expected 2 columns separated by tabs"), ("\ttext", "empty id")]
)
def test_a_malformed_passage_is_refused_with_file_and_line(folder: Path, line: str, expected: str) -> None:
    (folder / "collection.tsv").write_text(f"0\tzero\n{line}\n")
    with pytest.raises(DataError, match=rf"collection\.tsv:2: {expected}"):
        list(read_msmarco(folder).corpus)


def test_id_triples_stream_and_malformed_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("1\t2\t3\n1\t2\t\n")
    triples = read_triples(file)
    assert next(triples) == ("1", "2", "3")
    with pytest.raises(DataError, match=r"t\.tsv:2: expected three ids"):
        next(triples)


def test_text_triples_stream_and_malformed_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv.gz"
    file.write_bytes(gzip.compress(b"a query\tgood\tbad\nonly\ttwo\n"))
    triples = read_text_triples(file)
    assert next(triples) == TextTriple("a query", "good", "bad")
    with pytest.raises(DataError, match=r"t\.tsv\.gz:2: expected 3 columns"):
        next(triples)


def test_trec_and_leaderboard_queries_have_names_of_their_own(folder: Path) -> None:
    (folder / "msmarco-test2019-queries.tsv").write_text("8\teight\n9\tnine\n")
    (folder / "2019qrels-pass.txt").write_text("8 Q0 0 3\n8 Q0 1 0\n")
    data = read_msmarco(folder, "test2019")
    assert (data.queries, data.qrels) == ({"8": "eight"}, {"8": {"0": 3, "1": 0}})
    (folder / "queries.eval.small.tsv").write_text("10\tten\n")
    unlabelled = read_msmarco(folder, "eval")
    assert (unlabelled.queries, unlabelled.qrels, unlabelled.split) == ({"10": "ten"}, {}, "eval")
