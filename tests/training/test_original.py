"""A run with the original's settings follows, step by step, the plain script of original.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_text
import torch
from original import Followed, Settings, train
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from training_runs import entries
from transformers import RobertaConfig, RobertaModel

from ance_fast import Encoder, load_dataset
from ance_fast.training import AnceConfig, AnceTrainer
from ance_fast.training.generations import Generation
from ance_fast.training.triples import draw_triples, query_order

WIDTH = 32
FLAGS: dict[str, Any] = {
    "max_steps": 13,
    "save_steps": 5,
    "per_gpu_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "single_warmup": True,
    "topk_training": 10,
    "negative_sample": 3,
    "ann_chunk_factor": 2,
    "max_query_length": 8,
    "max_seq_length": 24,
    "seed": 7,
}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lamb": ({}, {}),
    "a-warm-up-a-generation": ({"single_warmup": False}, {"warmup": "refresh"}),
    # Lists in which the positive takes the place of one of three negatives: such a query gives fewer triples.
    "adamw-short-lists": ({"optimizer": "adamw", "topk_training": 3}, {"optimizer": "adamw", "topk": 3}),
}
"""What a run has for settings, in the script's names and in ours."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MS MARCO files of 45 passages and 23 queries, some with two positives; words of a few syllables, special tokens
    spelt out and blanks where the released tokenisation takes them away."""
    folder = tmp_path_factory.mktemp("msmarco")
    random = np.random.default_rng(5)
    words = ["".join(random.choice(["ka", "Lo", "mi", "NU", "te", "ro"], 3)) for _ in range(60)]

    def text(length: int) -> str:
        return " ".join(random.choice(words, length))

    passages = [text(int(random.integers(3, 30))) for _ in range(45)]
    for number, odd in enumerate(["</s>", " </S> ", "<MASK>", "  ", "<pad>", "<s> "]):
        words_of = passages[7 * number].split()
        passages[7 * number] = f" {words_of[0]} {odd}{' '.join(words_of[1:])}  "
    lines = [f"{number + 100}\t{passage}\n" for number, passage in enumerate(passages)]
    (folder / "collection.tsv").write_text("".join(lines), encoding="utf-8")
    queries, qrels = [], []
    for query in range(23):
        positives = random.choice(45, 1 + query % 2, replace=False)
        queries.append(f"{query}\t{' '.join(passages[positives[-1]].split()[:3])} {text(2)}\n")
        qrels += [f"{query}\t0\t{positive + 100}\t1\n" for positive in positives]
    (folder / "queries.train.tsv").write_text("".join(queries), encoding="utf-8")
    (folder / "qrels.train.tsv").write_text("".join(qrels), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ANCE's encoder, two layers of 32, with a byte-level BPE of the data's words in lower case, in RoBERTa's files."""
    folder = tmp_path_factory.mktemp("model")
    bpe = ByteLevelBPETokenizer(lowercase=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train([str(data / "collection.tsv")], vocab_size=320, special_tokens=special)
    bpe.save_model(str(folder))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40, type_vocab_size=1, layer_norm_eps=1e-5, initializer_range=0.4,
    )  # fmt: skip
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    chain = ["Transformer", "Pooling", "Dense", "LayerNorm"]
    paths = ["", "1_Pooling", "2_Dense", "3_LayerNorm"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(chain, paths, strict=True))
    ]
    dense = {"in_features": WIDTH, "out_features": WIDTH, "bias": True}
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True},
        "2_Dense/config.json": {**dense, "activation_function": "torch.nn.modules.linear.Identity"},
        "3_LayerNorm/config.json": {"dimension": WIDTH},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    head = torch.nn.Linear(WIDTH, WIDTH)
    save_file({"linear.weight": head.weight, "linear.bias": head.bias}, folder / "2_Dense/model.safetensors")
    norm = {"norm.weight": torch.full((WIDTH,), 0.5), "norm.bias": torch.zeros(WIDTH)}
    save_file(norm, folder / "3_LayerNorm/model.safetensors")
    return folder


def follow(model: Path, data: Path, **flags: Any) -> Followed:
    """What the plain script does with the data's files."""
    vocab = json.loads((model / "vocab.json").read_text(encoding="utf-8"))
    merges = [(a, b) for a, b in map(str.split, (model / "merges.txt").read_text(encoding="utf-8").splitlines()[1:])]
    args = Settings(**{**FLAGS, **flags})

    def read(name: str) -> list[list[str]]:
        return [line.split("\t") for line in (data / name).read_text(encoding="utf-8").splitlines()]

    def tokens(texts: list[str], length: int) -> list[list[int]]:
        return [released_text.roberta(text, vocab, merges, True, length) for text in texts]

    collection, queries = read("collection.tsv"), read("queries.train.tsv")
    pid = {line[0]: number for number, line in enumerate(collection)}
    qid = {line[0]: number for number, line in enumerate(queries)}
    qrels = [(qid[line[0]], pid[line[2]]) for line in read("qrels.train.tsv")]
    query_ids = tokens([text for _, text in queries], args.max_query_length)
    passage_ids = tokens([text for _, text in collection], args.max_seq_length)
    return train(model, query_ids, passage_ids, qrels, args)


def make(model: Path, data: Path, output: Path, **settings: Any) -> AnceTrainer:
    """A run of ours with the same settings, in our names."""
    ours: dict[str, Any] = {
        "max_steps": FLAGS["max_steps"],
        "refresh_every": FLAGS["save_steps"],
        "save_every": 8,
        "batch_size": FLAGS["per_gpu_train_batch_size"],
        "gradient_accumulation_steps": FLAGS["gradient_accumulation_steps"],
        "learning_rate": FLAGS["learning_rate"],
        "warmup_steps": FLAGS["warmup_steps"],
        "topk": FLAGS["topk_training"],
        "triples_per_query": FLAGS["negative_sample"],
        "query_chunks": FLAGS["ann_chunk_factor"],
        "max_query_length": FLAGS["max_query_length"],
        "max_document_length": FLAGS["max_seq_length"],
        "seed": FLAGS["seed"],
        "loss": "pairwise",
        "start": "index",
        "order": "triples",
        "optimizer": "lamb",
        "positives": "last",
        "sampler": "ance,count_positives=true",
        "weight_decay": 0.0,
        "dropout": 0.0,
        "logging_steps": 1,
    }
    config = AnceConfig(output_dir=str(output), **{**ours, **settings})
    encoder = Encoder.load(str(model), device="cpu", dtype="float32", text_preset="ance")
    return AnceTrainer(encoder, load_dataset(f"msmarco:{data}", split="train"), config)


def digest(negatives: list[int]) -> str:
    return hashlib.blake2b(np.array(negatives, dtype=np.int64)[:, None].data, digest_size=16).hexdigest()


@pytest.fixture(scope="module")
def wanted(model: Path, data: Path) -> dict[str, Followed]:
    """What the script does with each of `CHANGES`."""
    return {name: follow(model, data, **flags) for name, (flags, _) in CHANGES.items()}


@pytest.fixture(scope="module")
def finished(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> AnceTrainer:
    trainer = make(model, data, tmp_path_factory.mktemp("finished") / "run")
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_follows_the_plain_script_step_by_step(
    wanted: dict[str, Followed], finished: AnceTrainer, model: Path, data: Path, tmp_path: Path, name: str
) -> None:
    script, trainer = wanted[name], finished
    if CHANGES[name][1]:
        trainer = make(model, data, tmp_path / "run", **CHANGES[name][1])
        trainer.train()
    log = [entry for entry in entries(trainer.folder) if "loss" in entry]
    assert [entry["loss"] for entry in log] == pytest.approx(script.losses, abs=1e-5)
    assert [entry["learning_rate"] for entry in log] == pytest.approx(script.rates, rel=1e-12, abs=1e-18)
    assert all(("trust_ratio" in entry) == (trainer.ance.optimizer == "lamb") for entry in log)
    ranks = [entry["train_RR@10"] for entry in entries(trainer.folder) if "generation" in entry]
    assert ranks == pytest.approx(script.reciprocal_ranks[1:], abs=1e-6)
    lines = entries(trainer.folder, "negatives.jsonl")
    assert [line["ids"] for line in lines] == [digest([triple[2] for triple in batch]) for batch in script.batches]
    # A pass through a generation ends with a short batch.
    assert {len(batch) for batch in script.batches} > {FLAGS["per_gpu_train_batch_size"]}
    made = [Generation.load(path).table for path in sorted((trainer.folder / "generations").iterdir())]
    assert [(table.generation, table.step) for table in made] == [(0, 0), (1, 5), (2, 10)]
    for table, triples in zip(made, script.generations, strict=True):
        assert table.queries is not None
        order = query_order(table.queries.tolist(), seed=FLAGS["seed"], generation=table.generation)
        found = draw_triples(table, trainer.examples, trainer.sampler, order, FLAGS["negative_sample"])
        assert found.tolist() == [list(triple) for triple in triples]


def test_losses_of_the_script_depend_on_all_that_is_compared(
    wanted: dict[str, Followed], model: Path, data: Path
) -> None:
    """The comparison above would notice another optimizer, rate, part of the queries or list of candidates."""
    changed = [{"ann_chunk_factor": 1}, {"topk_training": 9}]
    others = [wanted[name] for name in CHANGES if name != "lamb"]
    others += [follow(model, data, **flags) for flags in changed]
    base = wanted["lamb"].losses
    for other in others:
        assert max(abs(mine - theirs) for mine, theirs in zip(base, other.losses, strict=True)) > 1e-4


def test_a_run_killed_within_a_generation_goes_on_with_the_same_triples(
    finished: AnceTrainer, model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "cut")
    first, last = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert (first.name, last.name) == ("step-00000008", "step-00000013")
    shutil.rmtree(last)
    again = make(model, data, tmp_path / "cut")
    again.train(resume=True)
    logs = [entries(trainer.folder, "negatives.jsonl") for trainer in (finished, again)]
    assert logs[0] == logs[1]
    assert finished.encoder.fingerprint() == again.encoder.fingerprint()
