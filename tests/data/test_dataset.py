from __future__ import annotations

import logging
import tracemalloc
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from ance_fast.data import dataset
from ance_fast.data.dataset import Corpus, collect_queries
from ance_fast.data.msmarco import _documents
from ance_fast.data.qrels import Qrels
from ance_fast.data.records import Document, Query
from ance_fast.errors import DataError


def corpus_of(tmp_path: Path, *lines: str) -> Corpus:
    file = tmp_path / "collection.tsv"
    file.write_text("".join(line + "\n" for line in lines))
    return Corpus(file, _documents)


def test_a_corpus_can_be_read_again_and_knows_its_length(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "1\ta", "", "2\tb")
    assert corpus.counted is None
    assert len(corpus) == 2
    assert corpus.counted == 2
    assert list(corpus) == list(corpus) == [Document("1", "a"), Document("2", "b")]


def test_reading_a_corpus_to_its_end_counts_it(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "1\ta", "2\tb")
    next(iter(corpus))
    assert corpus.counted is None
    list(corpus)
    assert corpus.counted == 2


def test_a_corpus_is_true_without_being_read(tmp_path: Path) -> None:
    assert Corpus(tmp_path / "missing.tsv", _documents)


def test_two_readers_of_one_corpus_do_not_disturb_each_other(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "1\ta", "2\tb")
    assert [(a.id, b.id) for a in corpus for b in corpus] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]


def test_a_duplicate_document_id_names_both_lines(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "1\ta", "2\tb", "", "1\tc")
    message = f"{corpus.path}:4: document id '1' again, first at {corpus.path}:1"
    with pytest.raises(DataError, match=message):
        list(corpus)
    with pytest.raises(DataError, match=message):
        len(corpus)


def test_a_duplicate_is_found_long_before_the_end_of_a_large_corpus() -> None:
    lines: list[int] = []

    def documents(path: Path) -> Iterator[tuple[int, Document]]:
        for line in range(1, 10_000_000):
            lines.append(line)
            yield line, Document(str(max(2, line)), "text")

    stream = iter(Corpus(Path("big"), documents))
    with pytest.raises(DataError, match=r"big:2: document id '2' again, first at big:1"):
        deque(stream, maxlen=0)
    assert max(lines) < 20_000


def test_documents_whose_hashes_collide_are_not_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path, "1\ta", "2\tb", "3\tc")
    monkeypatch.setattr(dataset, "hash", lambda value: 7, raising=False)
    assert len(corpus) == 3


def test_the_duplicate_check_holds_no_strings() -> None:
    def documents(path: Path) -> Iterator[tuple[int, Document]]:
        for line in range(1, 30_001):
            yield line, Document(f"a-rather-long-document-id-{line:030d}", "text")

    tracemalloc.start()
    try:
        assert len(Corpus(Path("big"), documents)) == 30_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30_000 * 60  # a set of these ids takes about 200 bytes each


def test_empty_documents_are_kept_and_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = corpus_of(tmp_path, "1\ta", "2\t", "3\t ")
    with caplog.at_level(logging.WARNING):
        assert [document.id for document in corpus] == ["1", "2", "3"]
        list(corpus)
        len(corpus)
    expected = f"2 documents have neither title nor text (first: {corpus.path}:2)"
    assert [record.getMessage() for record in caplog.records] == [expected]


def queries(*rows: tuple[str, str]) -> Iterator[tuple[int, Query]]:
    return ((line, Query(*row)) for line, row in enumerate(rows, 1))


def test_queries_are_those_judged_in_the_order_of_their_file() -> None:
    qrels = Qrels({"c": {"d": 1}, "a": {"d": 0}, "missing": {"d": 1}})
    found = collect_queries(Path("q"), queries(("a", "x"), ("b", "y"), ("c", "z")), qrels)
    assert list(found.items()) == [("a", "x"), ("c", "z")]


def test_a_duplicate_query_id_names_both_lines_even_if_it_is_not_judged() -> None:
    with pytest.raises(DataError, match=r"q:3: query id 'a' again, first at q:1"):
        collect_queries(Path("q"), queries(("a", "x"), ("b", "y"), ("a", "x")), Qrels({"b": {"d": 1}}))


def test_empty_queries_are_kept_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    assert collect_queries(Path("q"), queries(("a", "x"), ("b", " "), ("c", ""))) == {"a": "x", "b": " ", "c": ""}
    assert [record.getMessage() for record in caplog.records] == ["2 queries are empty (first: q:2)"]


def test_judgements_of_other_queries_are_refused() -> None:
    with pytest.raises(DataError, match="q: none of the 1 judged queries of r is here"):
        collect_queries(Path("q"), queries(("a", "x")), Qrels({"z": {"d": 1}}, path=Path("r")))
