"""Whole training runs on real text with a tiny model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ance_fast import Encoder, Index, TokenStore, load_dataset
from ance_fast.data import Qrels
from ance_fast.errors import ArtifactError, ConfigError, DataError
from ance_fast.training import AnceConfig, AnceTrainer, NegativeTable

SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "max_query_length": 16,
    "max_document_length": 32,
    "first_refresh": 4,
    "refresh_every": 4,
    "topk": 20,
    "logging_steps": 2,
}


def make_trainer(model: Path, data: Path, output: Path, **settings: Any) -> AnceTrainer:
    encoder = Encoder.load(str(model), device="cpu", dtype="float32", normalize=True)
    config = AnceConfig(output_dir=str(output), **{**SETTINGS, **settings})
    return AnceTrainer(
        encoder, load_dataset(str(data), split="train"), config, dev=load_dataset(str(data), split="dev")
    )


@pytest.fixture(scope="module")
def tiny_bert(tiny: Callable[..., Path]) -> Path:
    return tiny("Bert", num_hidden_layers=1)


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> AnceTrainer:
    trainer = make_trainer(tiny_bert, wiki, tmp_path_factory.mktemp("run") / "out", negatives_per_query=2)
    trainer.train()
    return trainer


def log_of(trainer: AnceTrainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_index_is_refreshed_on_schedule_and_measured_each_time(finished: AnceTrainer) -> None:
    refreshes = [entry for entry in log_of(finished) if "generation" in entry]
    assert [(entry["step"], entry["generation"]) for entry in refreshes] == [(4, 1.0), (8, 2.0)]
    assert all({"eval_nDCG@10", "margin", "stale_margin"} <= entry.keys() for entry in refreshes)
    tables = [NegativeTable.load(path) for path in sorted((finished.folder / "negatives").iterdir())]
    assert [(table.source, table.step) for table in tables] == [("bm25", 0), ("index", 4), ("index", 8)]


def test_mined_candidates_are_the_nearest_passages_by_brute_force_without_the_positives(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", start="index", max_steps=1)
    table = trainer._start_table()
    queries = trainer.encoder.encode_tokens(trainer.examples.queries).numpy().astype(np.float64)
    passages = trainer.encoder.encode_tokens(trainer.examples.passages).numpy().astype(np.float64)
    scores = queries @ passages.T
    scores[tuple(trainer.examples.pairs.T)] = -np.inf
    best = -np.sort(-scores, axis=1)[:, :20]
    np.testing.assert_allclose(np.take_along_axis(scores, table.candidates.astype(np.int64), 1), best, atol=1e-5)


@pytest.mark.parametrize("sampler", ["star", "ance-tele", "nv-retriever,contents=true", "simans,a=20"])
def test_every_sampler_trains_and_its_tables_say_where_they_come_from(
    tiny_bert: Path, wiki: Path, tmp_path: Path, sampler: str
) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", sampler=sampler, max_steps=6, first_refresh=3)
    trainer.train()
    table = NegativeTable.load(max((trainer.folder / "negatives").iterdir()))
    assert table.sources == trainer.sampler.config.sources
    assert (table.log_weights is not None) == sampler.startswith("simans")
    assert all(np.isfinite(entry["loss"]) for entry in log_of(trainer) if "loss" in entry)
    (refresh,) = [entry for entry in log_of(trainer) if "generation" in entry]
    shares = table.filtered_shares()
    assert shares == {name: refresh[name] for name in shares}
    assert ("filtered_percentage" in shares) == sampler.startswith("nv-retriever")


def test_training_lowers_the_loss_and_raises_the_metric(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", max_steps=40, refresh_every=15, first_refresh=15)
    before = trainer._measure(trainer._snapshot().index, 0)["eval_R@100"]
    after = trainer.train()["R@100"]
    losses = [entry["loss"] for entry in log_of(trainer) if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert after > before


@pytest.mark.parametrize(("loss", "start"), [("pairwise", "random"), ("pairwise", "bm25"), ("contrastive", "index")])
def test_every_loss_and_start_trains(tiny_bert: Path, wiki: Path, tmp_path: Path, loss: str, start: str) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", loss=loss, start=start, refresh="none", max_steps=3)
    trainer.train()
    assert (tmp_path / "out" / "final" / "modules.json").is_file()


def test_what_a_run_leaves_opens_everywhere(finished: AnceTrainer) -> None:
    final = finished.folder / "final"
    encoder = Encoder.load(str(final))
    expected = finished.encoder.encode_document(["some passage", "another one"])
    np.testing.assert_allclose(encoder.encode_document(["some passage", "another one"]), expected, atol=1e-6)
    theirs = SentenceTransformer(str(final), device="cpu").encode_document(["some passage", "another one"])
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    checkpoint = max((finished.folder / "checkpoints").glob("step-*"))
    assert SentenceTransformer(str(checkpoint), device="cpu").encode("x").shape == (32,)
    assert len(Index.load(finished.folder / "index", fingerprint=encoder.fingerprint())) == 400
    assert any((finished.folder / "tensorboard").iterdir())


def test_the_best_encoder_is_the_one_with_the_best_dev_metric(finished: AnceTrainer) -> None:
    measured = [(entry["eval_nDCG@10"], -entry["step"]) for entry in log_of(finished) if "eval_nDCG@10" in entry]
    best = json.loads((finished.folder / "best.json").read_text())
    assert (best["value"], -best["step"]) == max(measured)
    assert Encoder.load(str(finished.folder / "best")).dim == 32


def test_a_batch_holds_each_passage_once_and_never_a_positive_as_negative(finished: AnceTrainer) -> None:
    assert finished.table is not None
    queries = np.arange(40)
    batch = finished._make_batch(queries, finished.table, 11)
    assert len(np.unique(batch.passage_rows)) == len(batch.passage_rows)
    assert len(batch.packed) == 40 + len(batch.passage_rows)
    for i, query in enumerate(queries):
        positives = set(finished.examples.positives_of(np.array([query]))[1].tolist())
        assert batch.passage_rows[batch.positive[i]] in positives
        assert not positives & set(batch.passage_rows[batch.negatives[i]].tolist())


def test_the_batch_loss_equals_one_computed_text_by_text(finished: AnceTrainer) -> None:
    """The packing, de-duplication and reordering of a batch change nothing."""
    import torch

    assert finished.table is not None
    finished.encoder.eval()
    rows = np.arange(6)
    with torch.no_grad():
        loss = finished.compute_loss(finished.encoder, {"query": torch.tensor(rows)}).item()
        batch = finished._make_batch(rows, finished.table, finished.state.global_step)
        store, queries = finished.examples.passages, finished.examples.queries
        q = torch.cat([finished.encoder.encode_tokens(queries, np.array([row])) for row in rows]).double()
        p = torch.cat([finished.encoder.encode_tokens(store, np.array([row])) for row in batch.passage_rows]).double()
    logits = finished.scale * q @ p.T
    for i in range(len(rows)):
        for column, row in enumerate(batch.passage_rows):
            positives = finished.examples.positives_of(rows[i : i + 1])[1]
            if row in positives and column != batch.positive[i]:
                logits[i, column] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch.positive)).item()
    assert loss == pytest.approx(expected, rel=1e-4)


KILLED_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_trainer as t
t.make_trainer(Path({model!r}), Path({data!r}), Path(sys.argv[1]), **t.RESUME).train(resume=sys.argv[2] == "resume")
"""
RESUME: dict[str, Any] = {
    "max_steps": 32,
    "gradient_accumulation_steps": 2,
    "batch_size": 6,
    "dropout": 0.1,
    "first_refresh": 6,
    "refresh_every": 5,
    "save_every": 4,
}


def test_a_killed_run_resumes_to_the_very_same_weights(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    """SIGKILL after the first refresh; dropout on, accumulation 2.

    One run is killed past the checkpoint at the end of its first epoch, another within the second.
    """
    script = KILLED_RUN.format(tests=str(Path(__file__).parent), model=str(tiny_bert), data=str(wiki))

    def start(folder: str, mode: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path / folder), mode], env=environment)

    assert start("whole", "new").wait(240) == 0
    steps_per_epoch = -(-len(load_dataset(str(wiki), split="train").queries) // 12)
    assert steps_per_epoch == 20, "the checkpoints below are meant for epochs of 20 steps"
    whole = Encoder.load(str(tmp_path / "whole" / "final")).fingerprint()
    assert whole != Encoder.load(str(tiny_bert), normalize=True).fingerprint()
    log = (tmp_path / "whole" / "metrics.jsonl").read_text()
    for step in (20, 24):
        folder = tmp_path / f"killed-{step}"
        process = start(folder.name, "new")
        deadline = time.monotonic() + 240
        while not (folder / "checkpoints" / f"step-{step:08d}").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "final").exists()
        assert start(folder.name, "resume").wait(240) == 0
        assert Encoder.load(str(folder / "final")).fingerprint() == whole
        assert (folder / "metrics.jsonl").read_text() == log


def test_resuming_a_run_that_reached_its_last_step_only_finishes_it(
    finished: AnceTrainer, tiny_bert: Path, wiki: Path
) -> None:
    """What a kill between the last checkpoint and the end leaves."""
    log = (finished.folder / "metrics.jsonl").read_text()
    shutil.rmtree(finished.folder / "final")
    again = make_trainer(tiny_bert, wiki, finished.folder, negatives_per_query=2)
    again.train(resume=True)
    assert again.encoder.fingerprint() == finished.encoder.fingerprint()
    assert (finished.folder / "metrics.jsonl").read_text() == log


def test_another_corpus_is_refused_and_leaves_the_run_as_it_was(
    finished: AnceTrainer, tiny_bert: Path, tmp_path: Path
) -> None:
    from ance_fast.cli.demo.data import write_data

    write_data(tmp_path / "other", limit=300)
    with pytest.raises(ArtifactError, match="holds another corpus, which is in use"):
        make_trainer(tiny_bert, tmp_path / "other", finished.folder, negatives_per_query=2)
    assert len(TokenStore.open(finished.folder / "passages")) == 400


def test_a_new_run_forgets_what_an_abandoned_one_left(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    abandoned = make_trainer(tiny_bert, wiki, tmp_path / "out", start="random")
    abandoned._begin()
    abandoned._refresh_if_due()
    assert [path.name for path in (tmp_path / "out" / "negatives").iterdir()] == ["step-00000000-random"]
    make_trainer(tiny_bert, wiki, tmp_path / "out", max_steps=1, refresh="none").train()
    assert [path.name for path in (tmp_path / "out" / "negatives").iterdir()] == ["step-00000000-bm25"]


def test_a_full_disk_while_saving_is_one_clear_error_and_leaves_no_checkpoint(
    tiny_bert: Path, wiki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", max_steps=2, save_every=1, refresh="none")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ArtifactError, match=r"the checkpoint was not saved .*No space left .* is the disk full"):
        trainer.train()
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_resuming_refuses_other_settings_other_data_and_nothing_to_resume(
    finished: AnceTrainer, tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="no run to resume"):
        make_trainer(tiny_bert, wiki, tmp_path / "new").train(resume=True)
    with pytest.raises(ConfigError, match=r"learning_rate: 0.001 then, 0.5 now"):
        make_trainer(tiny_bert, wiki, finished.folder, learning_rate=0.5, negatives_per_query=2).train(resume=True)
    with pytest.raises(ConfigError, match="resume it, or choose another output folder"):
        make_trainer(tiny_bert, wiki, finished.folder, negatives_per_query=2).train()


def test_a_damaged_checkpoint_is_passed_over(
    tiny_bert: Path, wiki: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tiny_bert, wiki, tmp_path / "out", save_every=4).train()
    newest = max((tmp_path / "out" / "checkpoints").glob("step-*"))
    with open(newest / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    resumed = make_trainer(tiny_bert, wiki, tmp_path / "out", save_every=4)
    assert "passing over" not in caplog.text
    point = resumed._resume_point()
    assert "passing over a checkpoint" in caplog.text
    assert point.name < newest.name


def test_data_that_cannot_be_trained_on_is_refused(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    dataset = load_dataset(str(wiki), split="train")
    encoder = Encoder.load(str(tiny_bert))
    config = AnceConfig(output_dir=str(tmp_path / "out"), **SETTINGS)
    ungraded = Qrels({query: dict.fromkeys(documents, 0) for query, documents in dataset.qrels.items()})
    nothing = dataclasses.replace(dataset, qrels=ungraded)
    with pytest.raises(DataError, match="no query has both a text and a relevant document"):
        AnceTrainer(encoder, nothing, config)
    query, (document, *_) = next((q, list(d)) for q, d in dataset.qrels.items())
    lonely = dataclasses.replace(
        dataset,
        corpus=[d for d in dataset.corpus if d.id == document],
        qrels=Qrels({query: {document: 1}}),
        queries={query: dataset.queries[query]},
    )
    with pytest.raises(DataError, match="the corpus has 1 passage"):
        AnceTrainer(encoder, lonely, AnceConfig(output_dir=str(tmp_path / "one"), **SETTINGS))
    with pytest.raises(ConfigError, match="brings no negatives"):
        make_trainer(tiny_bert, wiki, tmp_path / "given", start="dataset").train()
