"""Training two towers: loss and gradients of a step against plain transformers, and what every refresh mines."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertModel, BertTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ance_fast import Encoder, load_dataset
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.batch import BatchMaker
from ance_fast.training.generations import Generation
from ance_fast.training.negative_table import NegativeTable
from ance_fast.training.refresh_worker import Worker
from ance_fast.training.triple_examples import prepare_triples
from ance_fast.training.worker_link import WorkerLink
from ance_fast.training.worker_messages import Job, Request

QUERIES, PASSAGES, TOPK = 9, 30, 8
WORDS = ("architecture", "settings", "folder", "random", "weights", "vocabulary", "session", "allowed", "process")
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "dropout": 0.0,
    "max_query_length": 12,
    "max_document_length": 24,
    "first_refresh": 1,
    "refresh_every": 2,
    "save_every": 2,
    "topk": TOPK,
    "start": "random",
    "negatives_per_query": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder in which every query has one passage of its own, a longer and a shorter one."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(5)

    def text(words: int) -> str:
        return " ".join(draw.choice(WORDS, words))

    corpus = [{"_id": f"d{row}", "title": "", "text": text(3 + row % 9)} for row in range(PASSAGES)]
    queries = [{"_id": f"q{row}", "text": text(2 + row % 5)} for row in range(QUERIES)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels").mkdir()
    for split in ("train", "dev"):
        lines = "".join(f"q{row}\td{3 * row}\t1\n" for row in range(QUERIES))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


@pytest.fixture(scope="module")
def folders(small_bert: Callable[..., Path]) -> tuple[Path, Path]:
    return tuple(small_bert(seed, num_hidden_layers=1, initializer_range=0.2) for seed in (1, 2))


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two towers, first tokens pooled."""
    folder = tmp_path_factory.mktemp("pair") / "towers"
    Encoder.pair(*(Encoder.load(str(path), "cpu", pooling="cls") for path in folders)).save(folder)
    return folder


def trainer_of(model: Path, data: Path, output: Path, *more: TrainerCallback, **settings: Any) -> AnceTrainer:
    encoder = Encoder.load(str(model), device="cpu")
    config = AnceConfig(output_dir=str(output), **{**SETTINGS, **settings})
    dev = load_dataset(str(data), split="dev")
    return AnceTrainer(encoder, load_dataset(str(data), split="train"), config, dev=dev, callbacks=list(more))


def first_tokens(model: BertModel, tower: Encoder, texts: list[str], length: int) -> Tensor:
    """The plain way: padded, and the first token's hidden state."""
    tokens = tower.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return model(**tokens).last_hidden_state[:, 0]


@pytest.mark.parametrize("loss", ["pairwise", "contrastive"])
@pytest.mark.parametrize("encode_tokens", [None, 24])
def test_loss_and_gradients_of_a_step_are_those_of_two_plain_towers(
    folders: tuple[Path, Path], model: Path, data: Path, tmp_path: Path, loss: str, encode_tokens: int | None
) -> None:
    trainer = trainer_of(model, data, tmp_path / "run", loss=loss, encode_tokens=encode_tokens)
    trainer.refresher.before_step(0)
    queries = np.array([7, 2, 5, 3])
    assert trainer.table is not None
    drawn = trainer._make_batch(queries, trainer.table, 0)
    if encode_tokens:
        assert len(drawn.chunks) > 3
    cache = trainer._grad_cache(trainer.encoder, encode_tokens)
    value = trainer.compute_loss(trainer.encoder, {"query": torch.from_numpy(queries), "cache": cache})
    value.backward()
    cache.backward()

    query_model, passage_model = (BertModel.from_pretrained(folder).eval() for folder in folders)
    passages, texts = trainer.examples.passages, trainer.examples.texts
    documents = [json.loads(line)["text"] for line in (data / "corpus.jsonl").read_text().splitlines()]
    q = first_tokens(query_model, trainer.encoder.for_queries, [texts[row] for row in queries], 12)
    rows = drawn.passage_rows
    assert [passages.id(row) for row in rows.tolist()] == [f"d{row}" for row in rows]
    p = first_tokens(passage_model, trainer.encoder, [documents[row] for row in rows], 24)
    scores = q @ p.T
    positive = drawn.positive.tolist()
    if loss == "pairwise":
        terms = [
            torch.nn.functional.softplus(scores[row, negative] - scores[row, positive[row]])
            for row in range(4)
            for negative in drawn.negatives[row].tolist()
        ]
    else:
        terms = [scores[row].logsumexp(0) - scores[row, positive[row]] for row in range(4)]
    plain = torch.stack(terms).mean()
    plain.backward()
    assert (drawn.negatives >= 0).all()
    torch.testing.assert_close(value.detach(), plain.detach(), rtol=1e-5, atol=1e-5)
    largest = max(weight.grad.abs().max().item() for weight in query_model.parameters() if weight.grad is not None)
    for tower, theirs in ((trainer.encoder.for_queries, query_model), (trainer.encoder, passage_model)):
        ours = dict(tower.backbone.model.named_parameters())
        for name, weight in theirs.named_parameters():
            if weight.grad is None:
                assert ours[name].grad is None, name
            else:
                torch.testing.assert_close(ours[name].grad, weight.grad, rtol=1e-3, atol=1e-5 * largest)


def test_a_chunk_is_of_one_tower_and_every_text_is_in_one(model: Path, data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(model, data, tmp_path / "run")
    trainer.refresher.before_step(0)
    assert trainer.table is not None
    make = {
        two: BatchMaker(trainer.examples, trainer.sampler, encode_tokens=30, two_towers=two) for two in (True, False)
    }
    queries = np.arange(6)
    apart, together = (make[two](queries, trainer.table, 1) for two in (True, False))
    kinds = np.concatenate([np.full(len(chunk), chunk.for_queries) for chunk in apart.chunks])
    assert kinds[apart.places[:6]].all()
    assert not kinds[apart.places[6:]].any()
    assert not any(chunk.for_queries for chunk in together.chunks)

    def texts(chunks: Any, places: np.ndarray) -> list[list[int]]:
        rows = [row for chunk in chunks for row in np.split(chunk.input_ids.numpy(), chunk.host_offsets[1:-1])]
        return [rows[place].tolist() for place in places]

    assert texts(apart.chunks, apart.places) == texts(together.chunks, together.places)
    assert all(chunk.num_tokens <= 30 for chunk in apart.chunks)


def test_queries_are_tokenised_by_the_query_towers_own_tokenizer(model: Path, data: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(str(model), "cpu")
    words = encoder.tokenizer.get_vocab()
    special = len(encoder.tokenizer.all_special_ids)
    other = {word: row if row < special else len(words) - 1 - row + special for word, row in words.items()}
    assert encoder.query_encoder is not None
    encoder.query_encoder.tokenizer = BertTokenizer(vocab=other, model_max_length=80)
    config = AnceConfig(output_dir=str(tmp_path / "run"), **SETTINGS)
    dataset = load_dataset(str(data), split="train")
    examples = AnceTrainer(encoder, dataset, config, dev=load_dataset(str(data), split="dev")).examples
    texts = list(dataset.queries.values())
    triples = tmp_path / "triples.tsv"
    triples.write_text("".join(f"{text}\tsession folder\trandom weights\n" for text in texts))
    config = AnceConfig(output_dir=str(tmp_path / "triples"), order="triples", refresh="none")
    from_triples = prepare_triples(triples, encoder, config)
    for name, tokenizer, rows, expected in (
        ("queries", encoder.query_encoder.tokenizer, examples.queries, texts),
        ("queries of triples", encoder.query_encoder.tokenizer, from_triples.queries, list(dict.fromkeys(texts))),
        ("passages of triples", encoder.tokenizer, from_triples.passages, ["session folder", "random weights"]),
    ):
        wanted = tokenizer(expected, truncation=True, max_length=12)["input_ids"]
        assert [rows.tokens(row).tolist() for row in range(len(rows))] == wanted, name


class _Interrupt(TrainerCallback):
    """Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_off_and_resumed_ends_with_both_towers_alike(
    model: Path, data: Path, tmp_path: Path
) -> None:
    settings = {"refresh": "rolling", "encode_tokens": 24, "dropout": 0.1, "loss": "pairwise"}
    whole = trainer_of(model, data, tmp_path / "whole", **settings)
    whole.train()
    before = Encoder.load(str(model), "cpu")
    for tower, start in zip(whole.encoder.towers, before.towers, strict=True):
        assert not torch.equal(tower.encode_tokens(whole.examples.queries), start.encode_tokens(whole.examples.queries))
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, data, tmp_path / "cut", _Interrupt(3), **settings).train()
    resumed = trainer_of(model, data, tmp_path / "cut", **settings)
    resumed.train(resume=True)
    assert resumed.encoder.fingerprint() == whole.encoder.fingerprint()
    saved = Encoder.load(str(tmp_path / "cut" / "final"), "cpu")
    assert saved.fingerprint() == whole.encoder.fingerprint()


def exact_scores(folders: tuple[Path, Path], trainer: AnceTrainer, data: Path) -> np.ndarray:
    """Each query's inner product with each passage, [QUERIES, PASSAGES], by the weights in the files."""
    query, document = (Encoder.load(str(folder), "cpu", pooling="cls") for folder in folders)
    corpus = [json.loads(line)["text"] for line in (data / "corpus.jsonl").read_text().splitlines()]
    return query.encode(trainer.examples.texts, max_length=12) @ document.encode(corpus, max_length=24).T


def assert_nearest(table: NegativeTable, scores: np.ndarray) -> None:
    """The candidates of each mined query are the passages with the highest scores but its positive."""
    mined = table.versions >= 0 if table.versions is not None else np.full(QUERIES, True)
    assert mined.any()
    for row in np.flatnonzero(mined).tolist():
        wanted = np.sort(np.delete(scores[row], 3 * row))[::-1][:TOPK]
        np.testing.assert_allclose(scores[row, table.candidates[row]], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("refresh", ["sync", "rolling"])
def test_negatives_and_dev_queries_are_searched_by_the_query_tower_among_passages_of_the_other(
    folders: tuple[Path, Path], model: Path, data: Path, tmp_path: Path, refresh: str
) -> None:
    """With hardly a learning rate every generation is that of the weights in the files."""
    trainer = trainer_of(model, data, tmp_path / "run", refresh=refresh, learning_rate=1e-12, weight_decay=0.0)
    report = trainer.train()
    scores = exact_scores(folders, trainer, data)
    ranks = (scores > np.diag(scores[:, ::3])[:, None]).sum(axis=1)
    assert report["RR@10"] == pytest.approx(np.where(ranks < 10, 1 / (ranks + 1), 0).mean(), abs=1e-9)
    made = Generation.load(sorted((tmp_path / "run" / "generations").glob("step-*"))[-1])
    assert made.number > 0
    assert_nearest(made.table, scores)
    run, evaluation = trainer.evaluate_on(load_dataset(str(data), split="dev"))
    assert evaluation["RR@10"] == pytest.approx(report["RR@10"])
    assert list(run["q4"])[:3] == [f"d{row}" for row in np.argsort(-scores[4])[:3]]


def test_the_refresh_worker_gets_both_towers_and_mines_with_them(
    folders: tuple[Path, Path], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(model, data, tmp_path / "run")
    jobs: list[Job] = []
    # The worker is made here and not in a process of its own, from the very job that one would get.
    monkeypatch.setattr(WorkerLink, "_start", lambda link, crash_at: jobs.append(job_of(link)))
    trainer.refresher.before_step(0)
    start = trainer.refresher.generation
    assert start is not None
    parts = trainer.refresher._parts  # type: ignore[attr-defined]
    link = WorkerLink(parts, device="cpu", threads=torch.get_num_threads())
    try:
        with torch.no_grad():
            for parameter in trainer.encoder.parameters():
                parameter.mul_(0.5)
        worker = Worker(jobs[-1], link._weights.descriptor)
        assert worker._parts.encoder.fingerprint() != trainer.encoder.fingerprint()
        link._weights.write(trainer.encoder)
        made = Generation.load(worker.make(Request(0, start.path_in(tmp_path / "run" / "generations"))))
        assert made.fingerprint == trainer.encoder.fingerprint()
        with torch.no_grad():
            for parameter in trainer.encoder.parameters():
                parameter.mul_(2.0)
        link._weights.write(trainer.encoder)
        made = Generation.load(worker.make(Request(1, start.path_in(tmp_path / "run" / "generations"))))
        assert_nearest(made.table, exact_scores(folders, trainer, data))
    finally:
        link.close()


def job_of(link: WorkerLink) -> Job:
    job: Job = pickle.loads((link._files / "job.pickle").read_bytes())
    return job
