from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ance_fast.data.records import Document
from ance_fast.data.sources import load_corpus, load_dataset, open_passages, refuse_missing
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


@pytest.mark.parametrize(
    ("name", "spec", "text"),
    [
        ("c.tsv", "tsv:{}", "d\tfrom a file\n"),
        ("c.txt", "text:{}", "from a file\n"),
        ("c.jsonl", "jsonl:{}", '{"docid": "d", "text": "from a file"}\n'),
        ("c.ndjson", "jsonl:{}", '{"id": "d", "contents": "from a file"}\n'),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_corpus_alone_is_named_or_recognised(
    tmp_path: Path, name: str, spec: str, text: str, compressed: bool
) -> None:
    file = tmp_path / (name + ".gz" * compressed)
    file.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    for given in (spec.format(file), str(file), file):
        data = load_dataset(given)
        assert [document.text for document in load_corpus(given)] == ["from a file"]
        assert (data.queries, data.qrels, data.name) == ({}, {}, "c")
        with pytest.raises(DataError, match="holds passages alone, no queries and judgements of a split 'train'"):
            load_dataset(given, split="train")
    with pytest.raises(DataError, match="holds passages alone; training needs queries"):
        data.training_qrels([])


def test_folders_of_parquet_and_jsonl_files_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "j" / "sub").mkdir(parents=True)
    (tmp_path / "j" / "sub" / "a.jsonl").write_text('{"id": "d", "contents": "x"}\n')
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"id": [1], "text": ["y"]}), tmp_path / "p" / "a.parquet")
    assert list(load_corpus(tmp_path / "j")) == [Document("d", "x")]
    assert list(load_corpus(tmp_path / "p")) == [Document("1", "y")]
    assert list(load_corpus(tmp_path / "p" / "a.parquet")) == [Document("1", "y")]


@pytest.mark.parametrize("manifest", ['{"name": "theirs", "files": []}', "[1]"])
def test_a_manifest_of_another_tool_beside_a_corpus_is_left_alone(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "d", "contents": "x"}\n')
    (tmp_path / "manifest.json").write_text(manifest)
    refuse_missing(tmp_path)
    assert list(open_passages(tmp_path)) == [Document("d", "x")]


def test_fields_are_named_after_a_question_mark(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text('{"key": "d", "body text": "x", "head": "h"}\n')
    expected = [Document("d", "x", "h")]
    for spec in (f"jsonl:{file}?id=key&text=body%20text&title=head", f"{file}?id=key&text=body%20text&title=head"):
        assert list(load_corpus(spec)) == expected
    pq.write_table(pa.table({"k": ["d"], "text": ["x"]}), tmp_path / "p1.parquet")
    assert list(load_corpus(f"parquet:{tmp_path}/p?.parquet?id=k")) == [Document("d", "x")]
    with pytest.raises(DataError, match="tsv has no option 'id'; options: none"):
        load_corpus("tsv:x.tsv?id=a")
    with pytest.raises(DataError, match="jsonl has no option 'key'; options: id, text, title"):
        load_corpus(f"jsonl:{file}?key=a")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("spec", ["{}", "pipe:{}", "jsonl:{}", "{}?text=body", "jsonl:{}?text=body"])
def test_a_pipe_is_recognised_and_may_be_named(tmp_path: Path, spec: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    field = "body" if "body" in spec else "text"
    data = f'{{"id": "d", "{field}": "x"}}\n'
    writer = threading.Thread(target=lambda: pipe.write_text(data), daemon=True)
    writer.start()
    assert list(load_corpus(spec.format(pipe))) == [Document("d", "x")]
    writer.join()


@pytest.mark.parametrize("spec", ["-", "tsv:-", "jsonl:-", "text:-"])
def test_a_dash_is_standard_input_and_nothing_is_read_from_it_early(spec: str) -> None:
    corpus = load_corpus(spec)
    assert (str(corpus.path), corpus.counted) == ("/dev/stdin", None)


def test_a_beir_folder_may_be_compressed_with_zstd(places: dict[str, Path]) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        plain = places["beir"] / name
        with pa.CompressedOutputStream(f"{plain}.zst", "zstd") as file:
            file.write(plain.read_bytes())
        plain.unlink()
    data = load_dataset(places["beir"])
    assert [document.text for document in data.corpus] == ["from beir"]
    assert (data.queries, data.qrels) == ({"q": "x"}, {"q": {"d": 1}})


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
