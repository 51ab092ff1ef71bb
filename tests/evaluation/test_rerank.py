"""Candidates ranked again: their scores are those of the full ranking, of all others nothing is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ance_fast.cli.main import app
from ance_fast.data import ChunkRules, Document, TokenStore, read_run
from ance_fast.encoding import encode_matrix
from ance_fast.errors import DataError
from ance_fast.evaluation.rerank import rerank
from ance_fast.models import Encoder

TEXTS = {f"d{number}": " ".join(f"river {number + word * 7} and" for word in range(3 + number)) for number in range(12)}
QUERIES = {"q1": "a river", "q2": "an emperor of 14", "q3": "42"}
CANDIDATES = {"q2": ["d3", "d0", "d3", "d11"], "q1": ["d5"], "q3": []}


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("Bert", num_hidden_layers=1)


def documents() -> list[Document]:
    return [Document(name, text) for name, text in TEXTS.items()]


def with_products(encoder: Encoder) -> Encoder:
    """Scores by inner products, as checkpoints of ANCE say; one that says nothing means cosines."""
    encoder.layout = replace(encoder.layout, similarity="dot")
    return encoder


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_candidates_get_the_scores_of_queries_and_documents_encoded_one_by_one(folder: Path, similarity: str) -> None:
    encoder = Encoder.load(folder)
    encoder.layout = replace(encoder.layout, similarity=similarity)
    run = rerank(encoder, QUERIES, CANDIDATES, iter(documents()))
    assert {query: list(scores) for query, scores in run.items()} == {"q2": ["d3", "d0", "d11"], "q1": ["d5"], "q3": []}
    for query, scores in run.items():
        vector = encoder.encode_query(QUERIES[query])
        for name, score in scores.items():
            other = encoder.encode_document(TEXTS[name])
            length = np.linalg.norm(vector) * np.linalg.norm(other) if similarity == "cosine" else 1
            assert score == pytest.approx(float(vector @ other / length), rel=1e-5)


def test_two_towers_encode_each_their_own_side(tiny: Callable[..., Path], folder: Path) -> None:
    query, document = Encoder.load(tiny("Roberta", num_hidden_layers=1)), Encoder.load(folder)
    run = rerank(with_products(Encoder.pair(query, document)), QUERIES, {"q1": ["d5"]}, documents())
    expected = float(query.encode_query(QUERIES["q1"]) @ document.encode_document(TEXTS["d5"]))
    assert run["q1"]["d5"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rules", [ChunkRules(8, 3, True, False), ChunkRules(8, 3, False, True)])
def test_a_document_in_chunks_has_the_score_of_its_best_one(folder: Path, rules: ChunkRules) -> None:
    encoder = with_products(Encoder.load(folder))
    encoder.set_chunks(rules)
    run = rerank(encoder, QUERIES, CANDIDATES, documents())
    store = TokenStore.from_texts(
        list(TEXTS.values()), encoder.tokenizer, ids=list(TEXTS), max_length=rules.length, chunks=rules
    )
    vectors = encode_matrix(encoder, store, batch_tokens=64).numpy()
    for query, scores in run.items():
        products = vectors @ encoder.encode_query(QUERIES[query])
        for name, score in scores.items():
            rows = [row for row, chunk in enumerate(store.ids) if chunk.rsplit("#", 1)[0] == name]
            assert len(rows) > 1
            assert score == pytest.approx(float(products[rows].max()), rel=1e-5)


def test_what_is_missing_is_counted_and_nothing_left_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder.load(folder)
    with caplog.at_level(logging.WARNING, logger="ance_fast"):
        run = rerank(encoder, QUERIES, {"x": ["d1"], "q1": ["gone", "d1"]}, documents())
    assert list(run["q1"]) == ["d1"]
    assert [record.message for record in caplog.records] == [
        "1 queries of the candidates have no text and are left out (first: 'x')",
        "1 candidates are not in the corpus and left out (first: 'gone')",
    ]
    with pytest.raises(DataError, match="none of the candidates' 1 queries, such as 'x', is among the 3 queries"):
        rerank(encoder, QUERIES, {"x": ["d1"]}, documents())
    with pytest.raises(DataError, match="none of the 2 candidates, such as 'e1', is in the corpus"):
        rerank(encoder, QUERIES, {"q1": ["e2", "e1"]}, documents())


def test_the_command_takes_bm25s_passages_with_their_texts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ance_fast"), "level", logging.WARNING)
    lines = [f"{query}\t{name}\t{QUERIES[query]}\t{TEXTS[name]}\n" for query in QUERIES for name in ("d1", "d2", "d3")]
    (tmp_path / "top1000.dev").write_text("".join(lines))
    (tmp_path / "qrels").write_text("q1 0 d2 1\n")

    def rank(*arguments: object) -> str:
        filled = ["--debug", "rank", *map(str, arguments), "-m", str(folder), "-o", str(tmp_path / "out.trec")]
        result = CliRunner().invoke(app, filled, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    file = tmp_path / "top1000.dev"
    shown = rank(
        f"top1000:{file}?qrels={tmp_path / 'qrels'}", "--candidates", file, "-k", 2, "--metrics", "R@3", "--json"
    )
    run = read_run(tmp_path / "out.trec")
    assert '"R@3": ' in shown
    assert [len(scores) for scores in run.values()] == [2, 2, 2]
    encoder = Encoder.load(folder)
    for query, scores in run.items():
        vector = encoder.encode_query(QUERIES[query], normalize_embeddings=True)
        others = encoder.encode_document([TEXTS[f"d{number}"] for number in (1, 2, 3)], normalize_embeddings=True)
        assert sorted(scores.values()) == pytest.approx(sorted((others @ vector).tolist())[1:], rel=1e-5)
    assert "3 queries; nothing to measure by" in rank(f"top1000:{file}")
    assert [len(scores) for scores in read_run(tmp_path / "out.trec").values()] == [3, 3, 3]
