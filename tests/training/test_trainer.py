"""Whole training runs on real text with a tiny model."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from training_runs import SETTINGS, entries, make_trainer

from ance_fast import Encoder, Index, TokenStore, load_dataset
from ance_fast.data import Qrels, write_run
from ance_fast.errors import ArtifactError, ConfigError, DataError
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.candidate_sources import refreshed_candidates
from ance_fast.training.generations import Generation
from ance_fast.training.refresh import take_snapshot
from ance_fast.training.start import start_table


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> AnceTrainer:
    trainer = make_trainer(tiny_bert, wiki, tmp_path_factory.mktemp("run") / "out", negatives_per_query=2)
    trainer.train()
    return trainer


def test_the_index_is_refreshed_on_schedule_and_measured_each_time(finished: AnceTrainer) -> None:
    refreshes = [entry for entry in entries(finished.folder) if "generation" in entry]
    assert [(entry["step"], entry["generation"]) for entry in refreshes] == [(4, 1.0), (8, 2.0)]
    assert all({"eval_nDCG@10", "margin", "stale_margin"} <= entry.keys() for entry in refreshes)
    made = [Generation.load(path) for path in sorted((finished.folder / "generations").iterdir())]
    assert [(g.number, g.table.source, g.step) for g in made] == [(0, "bm25", 0), (1, "index", 4), (2, "index", 8)]
    assert len({generation.fingerprint for generation in made}) == 3


def test_mined_candidates_are_the_nearest_passages_by_brute_force_without_the_positives(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", start="index", max_steps=1)
    table = start_table(trainer.ance, trainer.encoder, trainer.examples, trainer.sampler)
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
    table = Generation.load(max((trainer.folder / "generations").iterdir())).table
    assert table.sources == trainer.sampler.config.sources
    assert (table.log_weights is not None) == sampler.startswith("simans")
    assert all(np.isfinite(entry["loss"]) for entry in entries(trainer.folder) if "loss" in entry)
    (refresh,) = [entry for entry in entries(trainer.folder) if "generation" in entry]
    shares = table.filtered_shares()
    assert shares == {name: refresh[name] for name in shares}
    assert ("filtered_percentage" in shares) == sampler.startswith("nv-retriever")


@pytest.mark.parametrize("refresh", ["sync", "rolling"])
def test_a_run_file_is_a_source_of_every_refresh_and_of_the_start_and_belongs_to_the_run(
    tiny_bert: Path, wiki: Path, tmp_path: Path, refresh: str
) -> None:
    data = load_dataset(str(wiki), split="train")
    documents, random = [document.id for document in data.corpus], np.random.default_rng(0)
    run = {
        query: dict(zip(random.permutation(documents)[:5], [5.0, 4, 3, 2, 1], strict=True)) for query in data.queries
    }
    write_run(tmp_path / "bm25.trec", run)
    settings: dict[str, Any] = {
        "sampler": "ance,sources=index+bm25",
        "candidates": {"bm25": str(tmp_path / "bm25.trec")},
        "refresh": refresh,
        "max_steps": 6,
    }
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", **settings)
    trainer.train()
    start, later = (Generation.load(path).table for path in sorted((trainer.folder / "generations").iterdir()))
    assert (start.source, later.sources) == ("bm25", ("index", "bm25"))
    examples = trainer.examples
    mined = np.arange(len(examples)) if later.versions is None else np.flatnonzero(later.versions >= 0)
    assert later.origins is not None
    for query in mined:
        rows = examples.passages.positions(list(run[examples.queries.ids[int(query)]])).tolist()
        rows = [row for row in rows if row not in examples.positives_of(np.array([query]))[1]]
        assert start.candidates[query, : len(rows)].tolist() == rows
        assert set(later.candidates[query][(later.origins[query] & 2).astype(bool)].tolist()) == set(rows)
    run[next(iter(run))] = {documents[0]: 1.0}
    write_run(tmp_path / "bm25.trec", run)
    with pytest.raises(ConfigError, match="cannot resume with other settings or data \\(candidates: "):
        make_trainer(tiny_bert, wiki, tmp_path / "out", **settings).train(resume=True)


def test_chunks_of_a_positives_document_are_never_negatives(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    documents = [document.id for document in load_dataset(str(wiki), split="train").corpus]
    lines = [f"{passage}\t{number // 10}\n" for number, passage in enumerate(documents)]
    (tmp_path / "documents.tsv").write_text("".join(lines), encoding="utf-8")
    trainer = make_trainer(
        tiny_bert, wiki, tmp_path / "out", documents=str(tmp_path / "documents.tsv"), start="index", topk=390
    )
    table = start_table(trainer.ance, trainer.encoder, trainer.examples, trainer.sampler)
    for query, row in enumerate(table.candidates.tolist()):
        of_positives = {positive // 10 for positive in trainer.examples.positives_of(np.array([query]))[1].tolist()}
        found = {candidate // 10 for candidate in row if candidate >= 0}
        assert len(found) > 30
        assert not found & of_positives


@pytest.mark.parametrize("refresh", ["sync", "rolling"])
def test_passages_that_hold_an_answer_are_not_mined(tiny_bert: Path, wiki: Path, tmp_path: Path, refresh: str) -> None:
    data = load_dataset(str(wiki), split="train")
    lines = [json.dumps({"query": query, "answers": ["the"]}) + "\n" for query in list(data.queries)[::2]]
    (tmp_path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    trainer = make_trainer(
        tiny_bert,
        wiki,
        tmp_path / "out",
        answers=str(tmp_path / "answers.jsonl"),
        refresh=refresh,
        first_refresh=1,
        max_steps=2,
        topk=300,
    )
    trainer.train()
    assert trainer.table is not None
    versions = trainer.table.versions
    mined = np.arange(len(trainer.examples)) if versions is None else np.flatnonzero(versions >= 0)
    asked, texts = set(list(data.queries)[::2]), trainer.examples.passages
    held = {
        query: [
            " the " in f" {texts.document(row).text.lower()} " for row in trainer.table.candidates[query] if row >= 0
        ]
        for query in mined.tolist()
    }
    for query, answers in held.items():
        if trainer.examples.queries.ids[query] in asked:
            assert not any(answers)
    assert any(any(answers) for answers in held.values()), "others may have them"


def test_a_sampler_handed_to_another_process_finds_the_same_candidates(
    tiny_bert: Path, wiki: Path, tmp_path: Path
) -> None:
    data = load_dataset(str(wiki), split="train")
    documents = [document.id for document in data.corpus]
    known = {query: dict.fromkeys([*documents[:30], *data.qrels[query]], 0.5) for query in data.queries}
    write_run(tmp_path / "teacher.trec", known)
    lines = [json.dumps({"query": query, "answers": ["the"]}) + "\n" for query in data.queries]
    (tmp_path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    trainer = make_trainer(
        tiny_bert,
        wiki,
        tmp_path / "out",
        sampler="ance,sources=index+bm25+teacher,contents=true,teacher_max=0.6",
        candidates={"teacher": str(tmp_path / "teacher.trec")},
        answers=str(tmp_path / "answers.jsonl"),
    )
    snapshot = take_snapshot(trainer.encoder, trainer.examples, factory="Flat")
    ours, theirs = (
        refreshed_candidates(snapshot, trainer.examples, sampler, None, topk=20, generation=1, step=4)
        for sampler in (trainer.sampler, pickle.loads(pickle.dumps(trainer.sampler)))
    )
    np.testing.assert_array_equal(ours.candidates, theirs.candidates)
    assert ours.filtered == theirs.filtered
    assert min(ours.filtered["teacher"], ours.filtered["answer"]) > 0


def test_training_lowers_the_loss_and_raises_the_metric(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "out", max_steps=40, refresh_every=15, first_refresh=15)
    snapshot = take_snapshot(trainer.encoder, trainer.examples, factory="Flat")
    before = trainer.dev(trainer.encoder, snapshot.index, 0)["eval_R@100"]
    after = trainer.train()["R@100"]
    losses = [entry["loss"] for entry in entries(trainer.folder) if "loss" in entry]
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
    measured = [
        (entry["eval_nDCG@10"], -entry["step"]) for entry in entries(finished.folder) if "eval_nDCG@10" in entry
    ]
    best = json.loads((finished.folder / "best.json").read_text())
    assert (best["value"], -best["step"]) == max(measured)
    assert Encoder.load(str(finished.folder / "best")).dim == 32


def test_a_batch_holds_each_passage_once_and_never_a_positive_as_negative(finished: AnceTrainer) -> None:
    assert finished.table is not None
    queries = np.arange(40)
    batch = finished._make_batch(queries, finished.table, 11)
    assert len(np.unique(batch.passage_rows)) == len(batch.passage_rows)
    assert sum(len(chunk) for chunk in batch.chunks) == 40 + len(batch.passage_rows)
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


def gradients_of(trainer: AnceTrainer, scaler: Any = None) -> tuple[float, dict[str, Any], int]:
    """Loss and gradients of one of two accumulated batches, and how often the encoder ran."""
    import torch

    trainer.current_gradient_accumulation_steps = 2
    trainer.accelerator.scaler = scaler
    trainer.encoder.zero_grad()
    torch.manual_seed(7)
    runs = []
    hook = trainer.encoder.register_forward_hook(lambda *_: runs.append(1))
    loss = trainer.training_step(trainer.encoder, {"query": torch.arange(12)})
    hook.remove()
    return loss.item(), {name: p.grad for name, p in trainer.encoder.named_parameters() if p.requires_grad}, len(runs)


@pytest.mark.parametrize("loss", ["pairwise", "contrastive"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_batch_in_chunks_has_the_loss_and_gradient_of_a_whole_one(
    tiny_bert: Path, wiki: Path, tmp_path: Path, loss: str, dropout: float
) -> None:
    """With dropout on, of the same chunks with all graphs kept: another chunking draws other masks."""
    import torch

    settings: dict[str, Any] = {"refresh": "none", "start": "random", "loss": loss, "dropout": dropout}
    trainer = make_trainer(tiny_bert, wiki, tmp_path / "a", **settings, encode_tokens=128)
    whole = {"encode_tokens": 128, "kept_tokens": 10**6} if dropout else {}
    wanted_loss, wanted, wanted_runs = gradients_of(make_trainer(tiny_bert, wiki, tmp_path / "b", **settings, **whole))
    found_loss, found, runs = gradients_of(trainer)
    chunks = len(trainer._make_batch(np.arange(12), trainer.table, 0).chunks)  # type: ignore[arg-type]
    assert (wanted_runs, runs) == (chunks if dropout else 1, 2 * chunks - 1)
    assert chunks > 3
    assert found_loss == pytest.approx(wanted_loss, rel=1e-5)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(largest))
    scaled = gradients_of(trainer, torch.amp.GradScaler("cpu", init_scale=256.0))[1]
    for name, gradient in wanted.items():
        torch.testing.assert_close(scaled[name], 256 * gradient, rtol=1e-4, atol=256e-5 * float(largest))


def test_mixed_precision_trains_in_chunks_as_with_all_graphs_kept(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    logs = []
    for name, kept in (("all", 10**6), ("some", 96)):
        settings: dict[str, Any] = {"max_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 2}
        trainer = make_trainer(
            tiny_bert,
            wiki,
            tmp_path / name,
            **settings,
            refresh="none",
            start="random",
            dropout=0.1,
            encode_tokens=96,
            kept_tokens=kept,
            trainer_arguments={"bf16": True},
        )
        trainer.train()
        logs.append([entry for entry in entries(trainer.folder) if "grad_norm" in entry])
    (first, second), (first_again, second_again) = logs
    assert first_again["loss"] == first["loss"]
    assert first_again["grad_norm"] == pytest.approx(first["grad_norm"], rel=0.02)
    assert second_again["loss"] == pytest.approx(second["loss"], rel=0.02)


def test_an_epoch_is_every_query_once_in_a_shuffled_order(finished: AnceTrainer) -> None:
    """Queries that lie side by side in the data, often about one document, do not share a batch."""
    batches = [batch["query"].numpy() for batch in finished.get_train_dataloader()]
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(finished.examples)))
    assert np.mean(np.diff(order) == 1) < 0.1


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
    abandoned.run_folder.begin(abandoned._identity())
    abandoned._refresh_if_due()
    assert [path.name for path in (tmp_path / "out" / "generations").iterdir()] == ["step-00000000-random"]
    make_trainer(tiny_bert, wiki, tmp_path / "out", max_steps=1, refresh="none").train()
    assert [path.name for path in (tmp_path / "out" / "generations").iterdir()] == ["step-00000000-bm25"]


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


def test_weights_in_half_precision_are_refused(tiny_bert: Path, wiki: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(str(tiny_bert), device="cpu", dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"weights are bfloat16.*dtype='float32'"):
        AnceTrainer(encoder, load_dataset(str(wiki), split="train"), AnceConfig(output_dir=str(tmp_path / "run")))


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
