"""Whole runs over documents in chunks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import entries, make_trainer, timeless

from ance_fast import Encoder, Index, load_dataset
from ance_fast.data import ChunkRules
from ance_fast.data.chunks import OURS
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.training import AnceTrainer
from ance_fast.training.candidate_sources import refreshed_candidates, run_sampler
from ance_fast.training.dev_candidates import listed_candidates
from ance_fast.training.generations import Generation
from ance_fast.training.refresh import reciprocal_rank, take_snapshot
from ance_fast.training.rolling import RollingRefresh
from ance_fast.training.sync import probed_overlap

RUN: dict[str, Any] = {
    "max_steps": 4,
    "first_refresh": 2,
    "refresh_every": 2,
    "batch_size": 4,
    "negatives_per_query": 2,
    "topk": 10,
    "max_document_length": None,
    # Steps so small that the weights of the end are those of the refresh, but for the last digits.
    "learning_rate": 1e-9,
}


def document_scores(trainer: AnceTrainer, *, empty: bool) -> np.ndarray:
    """Every training query against every document: the maximum over its chunks, with empty ones or without."""
    examples, documents = trainer.examples, trainer.examples.documents
    assert documents is not None
    chunks = trainer.encoder.encode_tokens(examples.passages).numpy()
    queries = trainer.encoder.encode_tokens(examples.queries).numpy()
    products = queries @ chunks.T
    if not empty:
        products[:, examples.passages.lengths == 0] = -np.inf
    return np.maximum.reduceat(products, documents.starts[:-1], axis=1)


def corpus_ids(trainer: AnceTrainer) -> list[str]:
    return list(trainer.examples.corpus.ids)


def check_lists(trainer: AnceTrainer, candidates: np.ndarray, mined: np.ndarray, *, empty: bool) -> None:
    """The candidates [len(mined), 10] are the ten best documents of these queries, without their positives."""
    scores = document_scores(trainer, empty=empty)
    scores[tuple(trainer.examples.pairs.T)] = -np.inf
    best = -np.sort(-scores[mined], axis=1)[:, :10]
    assert len(mined)
    assert all(len(set(row)) == 10 for row in candidates.tolist()), "each document once"
    np.testing.assert_allclose(scores[mined[:, None], candidates.astype(np.int64)], best, atol=1e-4)


def check_results(trainer: AnceTrainer, data: Path, rules: str) -> None:
    """What a run leaves is about documents, and says how they were cut."""
    corpus = [document.id for document in load_dataset(str(data), split="train").corpus]
    assert list(trainer.examples.corpus.ids) == corpus
    assert all(np.isfinite(entry["loss"]) for entry in entries(trainer.folder) if "loss" in entry)
    assert any("eval_nDCG@10" in entry for entry in entries(trainer.folder))
    assert Encoder.load(str(trainer.folder / "final"), device="cpu").chunks == ChunkRules.parse(rules)
    index = Index.load(trainer.folder / "index", fingerprint=trainer.encoder.fingerprint())
    assert len(index) == len(trainer.examples.passages)
    run, _ = trainer.evaluate_on(load_dataset(str(data), split="dev"))
    assert all(len(found) == 100 and found.keys() <= set(corpus) for found in run.values())


def test_a_refresh_mines_the_documents_with_the_best_chunks(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    rules = "released,length=24,count=3"
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "run", chunks=rules, refresh_overlap=1.0, **RUN)
    trainer.train()
    table = Generation.load(max((trainer.folder / "generations").iterdir())).table
    assert table.source == "index"
    check_lists(trainer, table.candidates, np.arange(len(table.candidates)), empty=True)
    check_results(trainer, wiki, rules)
    # Candidates of dev queries, by the index and encoded anew.
    lines = [f"{query}\t{name}\t{rank}\n" for rank, name in enumerate(corpus_ids(trainer)[5:15]) for query in "ab"]
    (tmp_path / "dev.tsv").write_text("".join(lines))
    listed = listed_candidates(tmp_path / "dev.tsv", ["b", "a"], trainer.examples.passages)
    index = Index.load(trainer.folder / "index", fingerprint=trainer.encoder.fingerprint())
    asked_by = trainer.encoder.encode_tokens(trainer.examples.queries, np.array([3, 8])).numpy()
    expected = document_scores(trainer, empty=True)[[3, 8]][:, 5:15]
    for given in (index, None):
        ranked = listed.ranked(trainer.encoder, asked_by, given)
        assert list(ranked["b"]) == corpus_ids(trainer)[5:15]
        found_scores = [list(ranked[name].values()) for name in ("b", "a")]
        np.testing.assert_allclose(found_scores, expected, atol=1e-4)
    assert probed_overlap(trainer.encoder, trainer.examples, table, seed=1) > 0.9
    snapshot = take_snapshot(trainer.encoder, trainer.examples, factory="Flat")
    every = np.arange(len(table.candidates))
    others = np.delete(np.arange(len(trainer.examples.corpus)), trainer.examples.positive_rows)[:6]
    some = np.tile(others, (len(every), 1))
    scores = document_scores(trainer, empty=False)
    np.testing.assert_allclose(snapshot.products(every[:9], some[:9]), scores[:9, others], atol=1e-4)

    positive = [scores[query, trainer.examples.positives_of(np.array([query]))[1]].max() for query in every]
    listed_scores = np.take_along_axis(scores, table.candidates.astype(np.int64), 1)
    ranks = 1 + (listed_scores > np.array(positive)[:, None]).sum(axis=1)
    expected_rank = np.where(ranks <= 10, 1 / ranks, 0).mean()
    assert reciprocal_rank(snapshot, trainer.examples, table) == pytest.approx(expected_rank, abs=0.01)

    # Every source and scale, over the same snapshot: candidates of a percentage below the positives' cosine.
    text = "ance-tele,scores=cosine,percentage=0.999,contents=true"
    sampler = run_sampler(trainer.examples, dataclasses.replace(trainer.ance, sampler=text))
    found = refreshed_candidates(snapshot, trainer.examples, sampler, table, topk=10, generation=2, step=4)
    assert found.sources == ("index", "look-ahead", "momentum")
    chunks = snapshot.passages[trainer.examples.passages.lengths > 0]
    owners = trainer.examples.documents.numbers[trainer.examples.passages.lengths > 0]  # type: ignore[union-attr]
    unit, asked = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (chunks, snapshot.queries))
    cosines = np.full(scores.shape, -np.inf, dtype=np.float32)
    np.maximum.at(cosines.T, owners, (asked @ unit.T).T)
    kept = found.candidates >= 0
    np.testing.assert_allclose(
        found.scores[kept], np.take_along_axis(cosines, found.candidates.astype(np.int64), 1)[kept], atol=1e-5
    )
    lowest = [cosines[query, trainer.examples.positives_of(np.array([query]))[1]].min() for query in every]
    assert (found.scores <= 0.999 * np.array(lowest)[:, None] + 1e-5)[kept].all()


def test_rolling_mines_them_too_and_resumes_to_the_same_end(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    rules = "ours,length=24,count=3"
    settings = {**RUN, "chunks": rules, "refresh": "rolling", "rerank": 15, "rolling_hot": 5}
    settings |= {"loss": "pairwise", "save_every": 3, "logging_steps": 1}
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "whole", **settings)
    trainer.train()
    assert isinstance(trainer.refresher, RollingRefresh)
    state = trainer.refresher.state
    assert state is not None
    mined = np.flatnonzero(state.mined >= 0)
    check_lists(trainer, state.candidates[mined], mined, empty=False)
    check_results(trainer, wiki, rules)
    documents = trainer.examples.documents
    assert documents is not None
    assert documents.most == 3
    oldest = [state.versions[documents.numbers == document].min() for document in (0, 7)]
    assert trainer.refresher.ages(np.array([0, 7]), 9).tolist() == [9 - version for version in oldest]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")
    again = make_trainer(tiny_bert, wiki, tmp_path / "cut", **settings)
    again.train(resume=True)
    assert again.encoder.fingerprint() == trainer.encoder.fingerprint()
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    with pytest.raises(ArtifactError, match=r"holds a token store built with chunks .*'count': 3.*'count': 2"):
        make_trainer(tiny_bert, wiki, tmp_path / "cut", **{**settings, "chunks": "ours,length=24,count=2"})


def test_a_checkpoint_says_how_documents_are_cut(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(str(tiny_bert), device="cpu")
    assert encoder.chunks is None
    rules = ChunkRules(20, 2, first_token=True, keep_empty=False)
    encoder.set_chunks(rules)
    assert (encoder.max_document_length, encoder.max_query_length) == (20, 80)
    encoder.save(tmp_path / "maxp")
    assert Encoder.load(str(tmp_path / "maxp"), device="cpu").chunks == rules
    with pytest.raises(ConfigError, match="max_document_length=24: documents are cut into chunks of 20 tokens"):
        make_trainer(tmp_path / "maxp", wiki, tmp_path / "no", **{**RUN, "max_document_length": 24})
    with pytest.raises(ConfigError, match="chunks of 512 tokens: this encoder takes 80"):
        encoder.set_chunks(OURS)
    with pytest.raises(ConfigError, match="chunks='maxp': begin with one of"):
        make_trainer(tiny_bert, wiki, tmp_path / "no", chunks="maxp")


@pytest.mark.parametrize("chunks", [{"length": 20}, [1], {"length": 0, "count": 1, "first_token": 1, "keep_empty": 1}])
def test_notes_that_say_nothing_of_use_are_refused(tiny_bert: Path, tmp_path: Path, chunks: object) -> None:
    shutil.copytree(tiny_bert, tmp_path / "copy")
    (tmp_path / "copy" / "ance_fast.json").write_text(json.dumps({"chunks": chunks}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"copy/ance_fast\.json: chunks: "):
        Encoder.load(str(tmp_path / "copy"), device="cpu")
