"""Training on microsoft/ANCE's caches, which have tokens and no texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import SETTINGS, entries, make_trainer

from ance_fast import Encoder, load_dataset
from ance_fast.data import TokenStore
from ance_fast.data.ance_cache_writer import write_ance_passages, write_ance_queries


@pytest.fixture(scope="module")
def cache(tiny_bert: Path, wiki: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "preprocessed"
    tokenizer = Encoder.load(str(tiny_bert), device="cpu").tokenizer
    documents = list(load_dataset(wiki, split="train").corpus)
    passages = TokenStore.from_texts(
        [document.full_text for document in documents],
        tokenizer,
        ids=[document.id for document in documents],
        max_length=SETTINGS["max_document_length"],
    )
    write_ance_passages(folder, passages, tokenizer.pad_token_id)
    for split in ("train", "dev"):
        data = load_dataset(wiki, split=split)
        queries = TokenStore.of_queries(data, list(data.queries), tokenizer, max_length=SETTINGS["max_query_length"])
        write_ance_queries(folder, split, queries, data.qrels, passages, tokenizer.pad_token_id)
    return folder


def test_a_run_on_a_cache_is_the_run_on_its_texts(tiny_bert: Path, wiki: Path, cache: Path, tmp_path: Path) -> None:
    settings = {"start": "random", "max_steps": 4, "first_refresh": 2, "refresh_every": 2, "logging_steps": 1}
    for name, data in (("texts", wiki), ("cache", cache)):
        make_trainer(tiny_bert, data, tmp_path / name, **settings).train()
    losses, scores = (
        [[entry[key] for entry in entries(tmp_path / name) if key in entry] for name in ("texts", "cache")]
        for key in ("loss", "eval_nDCG@10")
    )
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert scores[0]
    assert scores[0] == scores[1]
