from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ance_fast.data.records import Document
from ance_fast.data.text_corpora import read_corpus_jsonl, read_pipe, read_text, read_tsv
from ance_fast.errors import DataError

pytestmark = pytest.mark.timeout(60)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def pipe(path: Path, data: bytes) -> Iterator[Path]:
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(data), daemon=True)
    writer.start()
    yield path
    writer.join()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\tone\n\n2\ttwo\twith a tab\n", [Document("1", "one"), Document("2", "two\twith a tab")]),
        ("1\tT\tone\n2\t\ttwo\n", [Document("1", "one", "T"), Document("2", "two", "")]),
        ("id\ttext\ttitle\n1\tone\tT\n", [Document("1", "one", "T")]),  # DPR's passages
        ("docid\turl\tbody\n1\thttp://x\tone\n", [Document("1", "one")]),
        ("1\tone\r\n2\t\r\n", [Document("1", "one"), Document("2", "")]),
    ],
)
def test_tsv_has_two_columns_or_three_or_a_header(tmp_path: Path, text: str, expected: list[Document]) -> None:
    data = read_tsv(write(tmp_path / "wiki.tsv", text))
    assert list(data.corpus) == expected
    assert (data.name, data.queries, data.qrels, data.split) == ("wiki", {}, {}, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\tone\n2 two\n", ":2: expected 2 columns as in the first line, got 1"),
        ("1\tT\tone\n2\ttwo\n", ":2: expected 3 columns as in the first line, got 2"),
        ("one\n", ":1: expected `id <tab> text` or .* got 1 column; name other columns"),
        ("1\thttp://x\tT\tone\n", ":1: expected .* got 4 columns; name other columns in a first line"),
        ("1\tone\n\ttwo\n", ":2: empty id"),
        ("1\tone\n2\ttwo\n1\tthree\n", ":3: document id '1' again, first at .*:1"),
        ("1\tone\n2\tt\0wo\n", ":2: NUL byte at column 4"),
    ],
)
def test_bad_tsv_is_refused_with_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path / "a.tsv", text)
    with pytest.raises(DataError, match=f"^{file}{expected}"):
        list(read_tsv(file).corpus)


def test_jsonl_names_are_those_of_the_first_record(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", '{"docid": 1, "text": "x", "id": null}\n{"docid": "2", "title": "T", "text": "y"}\n'
    )
    assert list(read_corpus_jsonl(file, id="docid").corpus) == [Document("1", "x"), Document("2", "y", "T")]
    with pytest.raises(DataError, match=f"{file}:1: `id` must be a string"):
        list(read_corpus_jsonl(file).corpus)
    mixed = write(tmp_path / "b.jsonl", '{"id": "1", "text": "x"}\n{"_id": "2", "text": "y"}\n')
    with pytest.raises(DataError, match=f"{mixed}:2: no `id`"):
        list(read_corpus_jsonl(mixed).corpus)


def test_text_lines_are_numbered_from_zero_and_blank_ones_skipped(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\n\n two \n")
    assert list(read_text(file).corpus) == [Document("0", "one"), Document("2", " two ")]


def test_several_files_are_one_corpus_and_errors_name_the_right_one(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "1.jsonl", '{"id": "b", "contents": "two"}\n')
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a", "contents": "one"}\n'))
    data = read_corpus_jsonl(folder)
    assert list(data.corpus) == list(data.corpus) == [Document("a", "one"), Document("b", "two")]
    assert data.name == "shards"
    write(folder / "2.jsonl", '\n{"id": "a", "contents": "three"}\n')
    message = f"{folder}/2.jsonl:2: document id 'a' again, first at {folder}/0.jsonl.gz:1"
    with pytest.raises(DataError, match=message):
        list(read_corpus_jsonl(folder).corpus)
    assert len(read_corpus_jsonl(f"{folder}/[01]*").corpus) == 2
    write(folder / "2.jsonl", "{}\n")
    with pytest.raises(DataError, match=f"{folder}/2.jsonl:1: no id"):
        list(read_corpus_jsonl(folder).corpus)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\n{"id": "a", "contents": "one"}\n', [Document("a", "one")]),
        ("a\tone\n", [Document("a", "one")]),
        ("one\ntwo\n", [Document("0", "one"), Document("1", "two")]),
        ("", []),
    ],
)
def test_the_first_line_of_a_pipe_tells_what_it_carries(
    tmp_path: Path, text: str, expected: list[Document], compress: Callable[[bytes], bytes]
) -> None:
    with pipe(tmp_path / "pipe", compress(text.encode())) as source:
        assert list(read_pipe(source).corpus) == expected


def test_a_pipe_is_read_once_and_says_so(tmp_path: Path) -> None:
    with pipe(tmp_path / "pipe", b"a\tone\nb\ttwo\n") as source:
        corpus = read_tsv(source).corpus
        assert corpus.counted is None
        with pytest.raises(TypeError, match="known only after its end"):
            len(corpus)
        assert len(list(corpus)) == len(corpus) == 2
        with pytest.raises(DataError, match=f"{source}: a pipe can be read only once; make a token store from it"):
            next(iter(corpus))


def test_bad_lines_of_a_pipe_have_numbers_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = {
        b"a\tone\nb\ttwo\na\tthree\n": "pipe0:3: document id 'a' again, first at .*pipe0:1; ids must be unique",
        b'{"id": "a", "text": "x"}\n{"id": "b"\n': "pipe1:2: not JSON",
        b"a\tone\nb\tun caf\xe9\n": "pipe2:2: not UTF-8",
        gzip.compress(b"a\tone\n" * 999)[:-9]: "pipe3:.*: damaged or cut-off gzip file",
    }
    for number, (data, expected) in enumerate(cases.items()):
        with pipe(tmp_path / f"pipe{number}", data) as source, pytest.raises(DataError, match=expected):
            list(read_pipe(source).corpus)
    with pipe(tmp_path / "last", b"a\tone\nb\t\n") as source:
        list(read_pipe(source).corpus)
    assert f"1 documents have neither title nor text (first: {source}:2)" in caplog.text
