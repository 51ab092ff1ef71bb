"""Commands with a checkpoint of two towers: queries by one, passages by the other, whichever command encodes them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ance_fast import Encoder
from ance_fast.data import read_run

PASSAGES = 12
WORDS = ("architecture", "settings", "folder", "random", "weights", "vocabulary", "session")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of twelve passages; query i is about passage i."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    texts = [" ".join(draw.choice(WORDS, 3 + row % 4)) for row in range(PASSAGES)]
    rows = {"corpus": [{"_id": f"d{row}", "title": "", "text": text} for row, text in enumerate(texts)]}
    rows["queries"] = [{"_id": f"q{row}", "text": " ".join(texts[row].split()[:2])} for row in range(6)]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels").mkdir()
    for split in ("train", "test"):
        judged = "".join(f"q{row}\td{row}\t1\n" for row in range(6))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.fixture(scope="module")
def pair(small_bert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "pair"
    towers = [small_bert(seed, num_hidden_layers=1, initializer_range=0.2) for seed in (1, 2)]
    encoder = Encoder.pair(*(Encoder.load(str(tower), "cpu", pooling="cls") for tower in towers))
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def scores(pair: Path, data: Path) -> dict[str, dict[str, float]]:
    """Inner products of the towers' vectors, each tower opened by itself."""
    read = {
        name: {row["_id"]: row["text"] for row in map(json.loads, (data / f"{name}.jsonl").read_text().splitlines())}
        for name in ("queries", "corpus")
    }
    tower = {name: Encoder.load(str(pair / name), "cpu") for name in ("query", "document")}
    products = (
        tower["query"].encode(list(read["queries"].values()))
        @ tower["document"].encode(list(read["corpus"].values())).T
    )
    return {
        query: dict(zip(read["corpus"], row.tolist(), strict=True))
        for query, row in zip(read["queries"], products, strict=True)
    }


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(warm: Run) -> Run:
    def ended(*arguments: object) -> subprocess.CompletedProcess[str]:
        result = warm("-m", "ance_fast.cli.main", *arguments)
        assert result.returncode == 0, result.stderr
        return result

    return ended


def assert_ranked(found: dict[str, dict[str, float]], scores: dict[str, dict[str, float]], depth: int) -> None:
    assert found.keys() == scores.keys()
    for query, hits in found.items():
        best = sorted(scores[query].values(), reverse=True)[:depth]
        assert sorted(hits.values(), reverse=True) == pytest.approx(best, rel=1e-4, abs=1e-4)
        assert {document: scores[query][document] for document in hits} == pytest.approx(hits, rel=1e-4, abs=1e-4)


def test_index_search_and_mine_encode_queries_with_the_query_tower(
    run: Run, data: Path, pair: Path, scores: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    index = tmp_path / "index"
    run("index", f"beir:{data}", "-m", pair, "-o", index)
    run("search", index, "-m", pair, "--queries", f"beir:{data}", "-o", tmp_path / "found.trec", "-k", 5)
    assert_ranked(read_run(tmp_path / "found.trec"), scores, 5)
    shown = json.loads(run("search", index, "session folder", "-m", pair, "-k", 3, "--json").stdout)
    query = Encoder.load(str(pair / "query"), "cpu").encode("session folder")
    assert len(shown["hits"]) == 3
    documents = Encoder.load(str(pair / "document"), "cpu")
    corpus = {row["_id"]: row["text"] for row in map(json.loads, (data / "corpus.jsonl").read_text().splitlines())}
    for hit in shown["hits"]:
        assert hit["score"] == pytest.approx(float(query @ documents.encode(corpus[hit["id"]])), rel=1e-4, abs=1e-4)
    options = ("--index", index, "--sampling", "top", "--negatives", 4, "-o", tmp_path / "mined.trec")
    run("mine", f"beir:{data}", "-m", pair, *options)
    negatives = {query: {d: s for d, s in row.items() if d[1:] != query[1:]} for query, row in scores.items()}
    assert_ranked(read_run(tmp_path / "mined.trec"), negatives, 4)


def test_training_begins_from_one_checkpoint_as_two_towers_that_part(
    run: Run, data: Path, pair: Path, tmp_path: Path
) -> None:
    steps = ("--max-steps", 2, "--start", "random", "--refresh", "none", "--max-document-length", 16)
    out = ("-o", tmp_path / "run", "--max-query-length", 12, "--batch-size", 3)
    run("train", f"beir:{data}", "-m", pair / "document", "--two-towers", "--device", "cpu", *steps, *out)
    made, start = Encoder.load(str(tmp_path / "run" / "final"), "cpu"), Encoder.load(str(pair / "document"), "cpu")
    texts = ["session folder", "random weights"]
    vectors = [made.encode_query(texts), made.encode_document(texts), start.encode(texts)]
    assert all(
        np.abs(a - b).max() > 1e-6 for a, b in ((vectors[0], vectors[1]), *((v, vectors[2]) for v in vectors[:2]))
    )
    assert (made.max_query_length, made.max_document_length) == (12, 16)
