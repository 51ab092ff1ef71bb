"""Encoders whose text rules are those of released code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import pre_tokenizers
from transformers import RobertaConfig, RobertaModel

from ance_fast import Encoder
from ance_fast.data import TokenStore, released_tokenizer
from ance_fast.errors import ArtifactError, ConfigError

FIRST = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json, merges.txt and a tokenizer_config that claims cased text, as released ones have it."""
    folder = tmp_path_factory.mktemp("roberta")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "max_len": 512, "init_inputs": []}')
    model_of(len(tokens)).save_pretrained(folder)
    return folder


def model_of(size: int) -> RobertaModel:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    return RobertaModel(config, add_pooling_layer=False).eval()


def load(folder: Path, preset: str | None = None) -> Encoder:
    return Encoder.load(str(folder), device="cpu", attention="padded", pooling="cls", text_preset=preset)


def test_texts_that_the_released_rules_hold_equal_have_equal_embeddings(roberta: Path) -> None:
    texts = ["The CAT </s> sat", " the cat</S>sat\n"]
    released, plain = load(roberta, "ance").encode(texts), load(roberta, "plain").encode(texts)
    np.testing.assert_array_equal(released[0], released[1])
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    np.testing.assert_array_equal(plain, load(roberta).encode(texts))


def test_rules_are_saved_with_an_encoder_and_sentence_transformers_follows_them(roberta: Path, tmp_path: Path) -> None:
    encoder = load(roberta, "ance")
    encoder.save(tmp_path / "saved")
    texts = ["The CAT </s> sat", " <MASK>\x1f "]
    expected = encoder.encode(texts)
    np.testing.assert_array_equal(load(tmp_path / "saved").encode(texts), expected)
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), expected, atol=1e-6)


def test_lower_casing_that_a_sentence_transformers_folder_asks_for_outlives_saving(
    roberta: Path, tmp_path: Path
) -> None:
    theirs = SentenceTransformer(modules=[modules.Transformer(str(roberta)), modules.Pooling(32, "cls")], device="cpu")
    theirs.save(str(tmp_path / "cased"))
    settings = tmp_path / "cased" / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))
    load(tmp_path / "cased").save(tmp_path / "saved")
    for folder in ("cased", "saved"):
        upper, lower = load(tmp_path / folder).encode(["The CAT", "the cat"])
        np.testing.assert_array_equal(upper, lower)
    upper, lower = load(tmp_path / "cased", "ance-cased").encode(["The CAT", "the cat"])
    assert np.abs(upper - lower).max() > 1e-3


def test_padding_spelt_out_in_a_seed_text_is_masked_and_has_no_position(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*FIRST, "the", "cat", "sat"]) + "\n")
    tokenizer = released_tokenizer(tmp_path, "seed")
    model = model_of(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # What the released encoder is given, which masks ids equal to 1 and counts the others for positions.
    ids = torch.tensor([[0, 5, 1, 6, 1, 7, 5, 6]])
    with torch.no_grad():
        expected = model(ids, attention_mask=ids.ne(1).long()).last_hidden_state[:, 0]
    text = "The [PAD] cat[PAD]sat the cat the"
    ours = load(tmp_path).encode([text], max_length=8)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_store_made_under_other_rules_is_not_taken_for_ones_own(roberta: Path, tmp_path: Path) -> None:
    texts = ["The cat", "the cat"]
    ance, cased = load(roberta, "ance").tokenizer, load(roberta, "ance-cased").tokenizer
    store = TokenStore.build(texts, ance, tmp_path / "store", max_length=16)
    np.testing.assert_array_equal(store.tokens(0), store.tokens(1))
    with pytest.raises(ArtifactError, match="tokenizer"):
        TokenStore.open(tmp_path / "store", tokenizer=cased)


def test_a_preset_that_does_not_fit_the_checkpoint_is_refused(roberta: Path, tiny: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="'dpr' is for WordPiece; RobertaTokenizer is byte-level BPE"):
        load(roberta, "dpr")
    with pytest.raises(ConfigError, match="begin with one of ance"):
        load(roberta, "roberta")
    with pytest.raises(ConfigError, match="'ance' is for byte-level BPE"):
        load(tiny("Bert"), "ance")
