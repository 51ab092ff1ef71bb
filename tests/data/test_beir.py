from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ance_fast.data.beir import read_beir
from ance_fast.data.records import Document
from ance_fast.errors import DataError

CORPUS = [{"_id": "d1", "title": "T", "text": "one"}, {"_id": 2, "text": "two", "title": None, "metadata": {}}]
QUERIES = [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}, {"_id": "q3", "text": "third"}]
QRELS = "query-id\tcorpus-id\tscore\nq3\td1\t1\nq1\t2\t2\n"


def write(file: Path, content: str, *, zipped: bool = False) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    if zipped:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(content.encode()))
    else:
        file.write_text(content)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def beir(folder: Path, corpus: str | None = None, queries: str | None = None, *, zipped: bool = False) -> Path:
    write(folder / "corpus.jsonl", lines(CORPUS) if corpus is None else corpus, zipped=zipped)
    write(folder / "queries.jsonl", lines(QUERIES) if queries is None else queries, zipped=zipped)
    write(folder / "qrels" / "test.tsv", QRELS, zipped=zipped)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_a_beir_folder_reads_plain_or_zipped(tmp_path: Path, zipped: bool) -> None:
    data = read_beir(beir(tmp_path / "mini", zipped=zipped))
    assert data.name == "mini"
    assert data.split == "test"
    assert list(data.corpus) == [Document("d1", "one", "T"), Document("2", "two")]
    assert list(data.queries.items()) == [("q1", "first"), ("q3", "third")]
    assert data.qrels == {"q3": {"d1": 1}, "q1": {"2": 2}}
    assert data.training_qrels(["d1"]) == {"q3": {"d1": 1}}


def test_without_a_split_every_query_is_read_and_no_judgement(tmp_path: Path) -> None:
    data = read_beir(beir(tmp_path), split=None)
    assert list(data.queries) == ["q1", "q2", "q3"]
    assert data.qrels == {}
    assert data.split is None


def test_a_folder_with_a_corpus_alone_reads_without_a_split(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", lines(CORPUS))
    data = read_beir(tmp_path, split=None)
    assert len(data.corpus) == 2
    assert data.queries == {}
    with pytest.raises(DataError, match=r"none of queries\.jsonl, queries\.jsonl\.gz, queries\.jsonl\.zst found"):
        read_beir(tmp_path)


def test_a_missing_split_lists_those_there_are(tmp_path: Path) -> None:
    beir(tmp_path)
    write(tmp_path / "qrels" / "dev.tsv", QRELS, zipped=True)
    with pytest.raises(DataError, match="no split 'train'; available: dev, test"):
        read_beir(tmp_path, split="train")
    with pytest.raises(DataError, match="no such folder"):
        read_beir(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "x"}', "no `_id`"),
        ('{"_id": "", "text": "x"}', "`_id` must be a string that is not empty, not ''"),
        ('{"_id": null, "text": "x"}', "`_id` must be a string"),
        ('{"_id": true, "text": "x"}', "`_id` must be a string"),
        ('{"_id": "d"}', "no `text`"),
        ('{"_id": "d", "text": null}', "`text` must be a string, not null"),
        ('{"_id": "d", "text": ["x"]}', "`text` must be a string, not list"),
        ('{"_id": "d", "text": "x", "title": 3}', "`title` must be a string, not int"),
        ('{"_id": "d", "text": "x"', "not JSON"),
    ],
)
def test_a_malformed_document_is_refused_with_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    data = read_beir(beir(tmp_path, corpus=lines(CORPUS[:1]) + "\n" + line + "\n"))
    with pytest.raises(DataError) as caught:
        list(data.corpus)
    assert str(caught.value).startswith(f"{tmp_path / 'corpus.jsonl'}:3: ")
    assert expected in str(caught.value)


def test_a_malformed_query_is_refused_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"queries\.jsonl:4: no `text`"):
        read_beir(beir(tmp_path, queries=lines(QUERIES) + '{"_id": "q4"}\n'))
