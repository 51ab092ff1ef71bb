"""Encoding a corpus to shards."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ance_fast import EmbeddingShards, Encoder, Index, TokenStore, encode_corpus
from ance_fast.data import load_corpus
from ance_fast.errors import ArtifactError, ConfigError


@pytest.fixture(scope="module")
def encoder(tiny: Callable[..., Path]) -> Encoder:
    return Encoder.load(str(tiny("Bert")), max_document_length=32)


@pytest.fixture
def store(encoder: Encoder, wiki: Path, tmp_path: Path) -> TokenStore:
    return TokenStore.build(load_corpus(str(wiki)), encoder.tokenizer, tmp_path / "tokens", max_length=32)


def test_shards_hold_what_encode_gives_in_corpus_order(encoder: Encoder, wiki: Path, tmp_path: Path) -> None:
    documents = list(load_corpus(str(wiki)))
    shards = encode_corpus(encoder, documents, tmp_path / "out", shard_rows=150)
    assert [len(block) for block in shards] == [150, 150, 100]
    assert list(shards.ids) == [document.id for document in documents]
    expected = encoder.encode_document([document.full_text for document in documents])
    np.testing.assert_allclose(shards.read(), expected, atol=1e-5)
    half = encode_corpus(encoder, documents, tmp_path / "half", dtype="float16").read()
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, expected, atol=1e-2)


def test_an_interrupted_run_keeps_its_finished_shards(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Encoder.encode_tokens
    calls: list[int] = []

    def counting(self: Encoder, table: TokenStore, rows: np.ndarray, **options: object) -> object:
        calls.append(int(rows[0]))
        if fail_at is not None and len(calls) == fail_at:
            raise KeyboardInterrupt
        return original(self, table, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode_tokens", counting)
    fail_at: int | None = 3
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(encoder, store, tmp_path / "out", shard_rows=100)
    assert not (tmp_path / "out").exists()
    fail_at, calls[:] = None, []
    resumed = encode_corpus(encoder, store, tmp_path / "out", shard_rows=100)
    assert calls == [200, 300]
    whole = encode_corpus(encoder, store, tmp_path / "whole", shard_rows=100)
    np.testing.assert_array_equal(resumed.read(), whole.read())


def test_shards_of_another_encoder_are_made_again_not_mixed(
    encoder: Encoder, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.save
    monkeypatch.setattr(np, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        encode_corpus(encoder, store, tmp_path / "out")
    monkeypatch.setattr(np, "save", real)
    other = Encoder.load(str(encoder.backbone.model.config._name_or_path), pooling="cls")
    other.set_lengths(max_document_length=32)
    np.testing.assert_array_equal(
        encode_corpus(other, store, tmp_path / "out").read(), encode_corpus(other, store, tmp_path / "new").read()
    )


def test_embeddings_are_refused_for_another_encoder_and_when_damaged(
    encoder: Encoder, store: TokenStore, tmp_path: Path
) -> None:
    shards = encode_corpus(encoder, store, tmp_path / "out")
    assert EmbeddingShards.open(tmp_path / "out", fingerprint=encoder.fingerprint()).dim == 32
    with pytest.raises(ArtifactError, match="encode the corpus again"):
        EmbeddingShards.open(tmp_path / "out", fingerprint="other")
    index = Index.build(shards, metric="cosine")
    assert index.fingerprint == encoder.fingerprint()
    assert index.search(shards.read()[:5], 1).ids == [[name] for name in shards.ids[:5]]
    file = next((tmp_path / "out").glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes, the manifest says"):
        EmbeddingShards.open(tmp_path / "out")


def test_a_store_of_another_tokenizer_or_longer_passages_is_refused(
    encoder: Encoder, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign = TokenStore.from_texts(["a"], PreTrainedTokenizerFast(tokenizer_object=backend), max_length=8)
    with pytest.raises(ArtifactError, match="another encoder's vocabulary"):
        encode_corpus(encoder, foreign, tmp_path / "out")
    long = TokenStore.from_texts(["a " * 300], encoder.tokenizer, max_length=200)
    with pytest.raises(ConfigError, match="passages of up to 200 tokens, the encoder takes 80"):
        encode_corpus(encoder, long, tmp_path / "out")
