"""int8 encoders: close to float32, measured before use, and never mistaken for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ance_fast.data import load_corpus
from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.models.encoder import Encoder
from ance_fast.models.int8 import Int8Encoder, int8_overlap, quantize


@pytest.fixture(scope="module")
def texts(wiki: Path) -> list[str]:
    return [document.full_text for document in load_corpus(str(wiki))][:60]


@pytest.fixture(scope="module")
def real(minilm: Path) -> Encoder:
    return Encoder.load(str(minilm), device="cpu", num_layers=2, max_document_length=24)


@pytest.fixture(scope="module")
def int8(real: Encoder, texts: list[str]) -> Int8Encoder:
    return quantize(real, texts, threshold=0.5)


def test_int8_embeddings_are_close_to_float32_in_the_order_asked_for(
    real: Encoder, int8: Int8Encoder, texts: list[str]
) -> None:
    ours, theirs = int8.encode_document(texts[:40]), real.encode_document(texts[:40])
    assert ours.shape == theirs.shape
    assert (ours * theirs).sum(axis=1).min() > 0.95  # cosines: both are normalised
    assert not np.array_equal(ours, theirs)


def test_the_overlap_is_measured_logged_and_held_against_the_threshold(
    real: Encoder, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ance_fast.models.int8"):
        made = quantize(real, texts, threshold=0.8)
    overlap = int8_overlap(real, made, texts)
    assert 0.8 <= overlap < 1
    assert f"{overlap:.3f}" in caplog.text
    with pytest.raises(ConfigError, match=r"int8 keeps 0\.\d{3} of the float32 encoder's top 10 .* threshold 1"):
        quantize(real, texts, threshold=1.0)


def test_overlap_is_one_with_itself_and_chance_with_noise(
    real: Encoder, tiny: Callable[..., Path], texts: list[str]
) -> None:
    assert int8_overlap(real, real, texts) == 1
    other = Encoder.load(str(tiny("Bert")), device="cpu", max_document_length=24)
    assert int8_overlap(real, other, texts) < 0.5


def test_fingerprints_differ_from_float32_and_between_ranges(tiny: Callable[..., Path], texts: list[str]) -> None:
    encoder = Encoder.load(str(tiny("Bert")), device="cpu", max_document_length=32)
    made = [quantize(encoder, texts[:20], threshold=0, reduce_range=narrow) for narrow in (False, True)]
    assert len({encoder.fingerprint(), *(one.fingerprint() for one in made)}) == 3


@pytest.mark.parametrize("architecture", ["Roberta", "DistilBert"])
def test_other_architectures_quantise(tiny: Callable[..., Path], texts: list[str], architecture: str) -> None:
    encoder = Encoder.load(str(tiny(architecture)), device="cpu", pooling="cls", max_document_length=32)
    made = quantize(encoder, texts[:30], threshold=0)
    ours, theirs = (torch.from_numpy(e.encode_document(texts[:30])) for e in (made, encoder))
    assert torch.cosine_similarity(ours, theirs).min() > 0.99


def test_what_int8_cannot_do_is_refused(int8: Int8Encoder, real: Encoder, texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be saved"):
        int8.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ConfigError, match="cannot be trained"):
        int8.train()
    with pytest.raises(ConfigError, match="made from a float32 encoder on the CPU; this one is torch.int8"):
        quantize(int8, texts)
    with pytest.raises(ConfigError, match="threshold is 2"):
        quantize(real, texts, threshold=2)
    with pytest.raises(ConfigError, match="needs at least 12 texts, got 3"):
        int8_overlap(real, int8, texts[:3])


def test_the_extra_is_named_when_onnx_is_missing(
    real: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ance_fast\[onnx\]'"):
        quantize(real, texts)


def test_two_towers_both_become_int8(small_bert: Callable[..., Path], texts: list[str]) -> None:
    towers = [Encoder.load(str(small_bert(seed, num_hidden_layers=1)), "cpu", pooling="cls") for seed in (1, 2)]
    pair = Encoder.pair(*towers)
    made = quantize(pair, texts, threshold=0.0)
    assert [type(tower) for tower in made.towers] == [Int8Encoder, Int8Encoder]
    assert made.fingerprint() not in (pair.fingerprint(), quantize(towers[1], texts, threshold=0.0).fingerprint())
    for tower, method in zip(towers, ("encode_query", "encode_document"), strict=True):
        ours, theirs = getattr(made, method)(texts), tower.encode(texts)
        assert not np.array_equal(ours, theirs)
        assert np.abs(ours - theirs).max() < 0.2 * np.abs(theirs).max()
