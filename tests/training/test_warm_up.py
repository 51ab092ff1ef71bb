"""Training on a file of text triples: in its order, measured as it goes, tokenised once."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import entries

from ance_fast import Encoder, load_dataset
from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation import evaluate
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.dev_candidates import listed_candidates
from ance_fast.training.ranks import ALONE
from ance_fast.training.run_data import dev_queries

SETTINGS: dict[str, Any] = {
    "max_steps": 8,
    "batch_size": 5,
    "loss": "pairwise",
    "order": "triples",
    "refresh": "none",
    "measure_every": 3,
    "max_query_length": 12,
    "max_document_length": 12,
    "logging_steps": 1,
    "save_every": 3,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def triples(wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 lines: queries of the data's own judgements, a positive and another passage."""
    data, random = load_dataset(str(wiki), split="train"), np.random.default_rng(0)
    texts = {document.id: document.full_text for document in data.corpus}
    names, lines = list(texts), []
    for query, text in list(data.queries.items())[:23]:
        positive = next(iter(data.qrels[query]))
        lines.append("\t".join([text, texts[positive], texts[str(random.choice(names))]]).replace("\n", " "))
    file = tmp_path_factory.mktemp("triples") / "triples.train.small.tsv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def candidates(wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """top1000.dev of the dev queries: seven passages each, one of them relevant, and one that the corpus lacks."""
    dev, random = load_dataset(str(wiki), split="dev"), np.random.default_rng(1)
    names = [document.id for document in dev.corpus]
    lines = []
    for query, text in dev.queries.items():
        relevant = next(iter(dev.qrels[query]))
        others = [str(name) for name in random.choice(names, 6, replace=False) if name != relevant]
        lines += [f"{query}\t{name}\t{text}\ta text\n" for name in [*others, relevant, "absent"]]
    file = tmp_path_factory.mktemp("candidates") / "top1000.dev"
    file.write_text("".join(lines), encoding="utf-8")
    return file


def make(tiny_bert: Path, triples: Path, wiki: Path, output: Path, **settings: Any) -> AnceTrainer:
    encoder = Encoder.load(str(tiny_bert), device="cpu", dtype="float32")
    config = AnceConfig(output_dir=str(output), **{**SETTINGS, **settings})
    return AnceTrainer(encoder, load_dataset(f"triples:{triples}"), config, dev=load_dataset(str(wiki), split="dev"))


@pytest.fixture(scope="module")
def finished(
    tiny_bert: Path, triples: Path, wiki: Path, candidates: Path, tmp_path_factory: pytest.TempPathFactory
) -> AnceTrainer:
    folder = tmp_path_factory.mktemp("run") / "out"
    trainer = make(tiny_bert, triples, wiki, folder, dev_candidates=str(candidates))
    trainer.train()
    return trainer


def test_batches_are_the_lines_of_the_file_in_order_again_and_again(finished: AnceTrainer) -> None:
    rows = finished.examples.triples
    assert rows is not None
    batches = [rows[start : start + 5] for _ in range(2) for start in range(0, 23, 5)][:8]
    wanted = [hashlib.blake2b(np.int64(batch[:, 2:]).tobytes(), digest_size=16).hexdigest() for batch in batches]
    lines = entries(finished.folder, "negatives.jsonl")
    assert [line["ids"] for line in lines] == wanted
    assert [line["negatives"] for line in lines] == [5, 5, 5, 5, 3, 5, 5, 5]


def test_dev_queries_are_measured_as_often_as_asked_over_their_own_corpus_and_over_candidates(
    finished: AnceTrainer, candidates: Path, wiki: Path
) -> None:
    measured = [entry for entry in entries(finished.folder) if "eval_RR@10" in entry]
    assert [entry["step"] for entry in measured] == [3, 6, 8]
    assert len({entry["eval_rerank_RR@10"] for entry in measured}) > 1
    dev = load_dataset(str(wiki), split="dev")
    encoder = Encoder.load(str(finished.folder / "final"), device="cpu")
    texts = {document.id: document.full_text for document in dev.corpus}
    passages = dict(zip(texts, encoder.encode_document(list(texts.values())), strict=True))
    queries = dict(zip(dev.queries, encoder.encode_query(list(dev.queries.values())), strict=True))
    listed: dict[str, list[str]] = {}
    for line in candidates.read_text(encoding="utf-8").splitlines():
        listed.setdefault(line.split("\t")[0], []).append(line.split("\t")[1])

    def scored(query: str, names: list[str]) -> dict[str, float]:
        return {name: float(queries[query] @ passages[name]) for name in names if name in passages}

    full = evaluate({query: scored(query, list(texts)) for query in queries}, dev.qrels, metrics=["RR@10"])
    rerank = evaluate({query: scored(query, listed[query]) for query in queries}, dev.qrels, metrics=["RR@10"])
    assert measured[-1]["eval_RR@10"] == pytest.approx(full["RR@10"], abs=1e-9)
    assert measured[-1]["eval_rerank_RR@10"] == pytest.approx(rerank["RR@10"], abs=1e-9)


def test_what_is_searched_afterwards_is_the_dev_corpus(finished: AnceTrainer, wiki: Path) -> None:
    data = load_dataset(str(wiki), split="test")
    run, evaluation = finished.evaluate_on(data)
    assert 0 <= evaluation["RR@10"] <= 1
    # Answers are looked for in the passages that were searched.
    texts = {document.id: document.text for document in data.corpus}
    answers = {query: [texts[next(iter(found))]] for query, found in run.items()}
    assert finished.evaluate_on(replace(data, answers=answers), ("top-1",))[1]["top-1"] == 1.0


def test_a_resumed_run_tokenises_nothing_and_goes_on_with_the_next_line(
    finished: AnceTrainer,
    tiny_bert: Path,
    triples: Path,
    wiki: Path,
    candidates: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(finished.folder, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000008")
    trainer = make(tiny_bert, triples, wiki, tmp_path / "cut", dev_candidates=str(candidates))
    assert trainer.examples.passages.tokenised is None
    assert trainer.dev.passages is not None
    assert trainer.dev.passages.tokenised is not None
    assert trainer.dev.passages.tokenised.rows == 0
    trainer.train(resume=True)
    for name in ("negatives.jsonl", "metrics.jsonl"):
        logs = [entries(run.folder, name) for run in (finished, trainer)]
        plain = [[{k: v for k, v in line.items() if "seconds" not in k} for line in log] for log in logs]
        assert plain[0] == plain[1]


def test_candidates_alone_take_no_index(
    tiny_bert: Path, triples: Path, wiki: Path, candidates: Path, tmp_path: Path
) -> None:
    settings = {"full_ranking": False, "dev_candidates": str(candidates), "max_steps": 1}
    trainer = make(tiny_bert, triples, wiki, tmp_path / "out", **settings)
    report = trainer.train()
    assert report.keys() == {f"rerank_{name}" for name in ("nDCG@10", "RR@10", "R@100")}
    assert not (tmp_path / "out" / "index").exists()
    assert (tmp_path / "out" / "best" / "modules.json").exists()


def test_other_orders_and_measurements_without_dev_queries_are_refused(
    finished: AnceTrainer, tiny_bert: Path, triples: Path, wiki: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="triples are trained on as they are"):
        make(tiny_bert, triples, wiki, tmp_path / "a", order="queries")
    config, nobody = AnceConfig(output_dir=str(tmp_path / "b"), **SETTINGS), load_dataset(f"triples:{triples}")
    with pytest.raises(ConfigError, match="measure_every=3: there are no dev queries"):
        dev_queries(nobody, nobody, finished.examples, finished.encoder, config, replace=True, ranks=ALONE)


def test_candidates_may_be_a_run_and_what_is_unknown_is_counted(
    finished: AnceTrainer, candidates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = finished.dev.passages
    assert corpus is not None
    first, second = corpus.ids[0], corpus.ids[1]
    run = tmp_path / "run.trec"
    run.write_text(f"\ufeffq Q0 {second} 1 9 x\nq Q0 {first} 2 8 x\nq Q0 nowhere 3 7 x\nother Q0 {first} 1 1 x\n")
    found = listed_candidates(run, ["unlisted", "q"], corpus)
    assert (found.offsets.tolist(), found.rows.tolist()) == ([0, 0, 2], [1, 0])
    assert "1 candidates of" in caplog.text
    assert "passage 'nowhere'" in caplog.text
    assert f"1 queries of {run} are no dev queries (first: query 'other')" in caplog.text
    for name, content, message in (
        ("bad", "q\td1\tquery\ttext\nq only\n", r"bad:2: expected 4 columns separated by tabs, got 1"),
        ("none", "q\tnowhere\t1\n", "none: names no candidate of a dev query that is in the corpus"),
        ("empty", "\n", "empty: names no candidate"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            listed_candidates(tmp_path / name, ["q"], corpus)
