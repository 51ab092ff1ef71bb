"""Encoders against sentence-transformers and against plain transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from ance_fast import Encoder
from ance_fast.artifacts import open_artifact
from ance_fast.cli.demo.data import write_data
from ance_fast.data import load_corpus
from ance_fast.data.chunks import ChunkRules
from ance_fast.errors import ArtifactError, ConfigError

ODD_TEXTS = ["", "a", "   ", "word " * 2000, "Ünïcödé 東京 \U0001f600", "[SEP] [MASK] literal", "one\ntwo\tthree"]


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """500 real passages, the odd ones among them; seven of eight cut short, which saves half a minute."""
    folder = tmp_path_factory.mktemp("wiki") / "data"
    write_data(folder, limit=493)
    whole = [document.full_text for document in load_corpus(str(folder))]
    return ODD_TEXTS + [text if place % 8 == 0 else text[: 50 + place // 2] for place, text in enumerate(whole)]


def test_embeddings_of_500_real_passages_equal_sentence_transformers(minilm: Path, passages: list[str]) -> None:
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(passages)
    encoder = Encoder.load(str(minilm))
    assert encoder.backbone.mode == "packed"
    assert len(passages) == 500
    assert np.abs(encoder.encode(passages) - theirs).max() <= 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_every_pooling_equals_sentence_transformers(
    tiny: Callable[..., Path], tmp_path: Path, passages: list[str], pooling: str
) -> None:
    transformer = modules.Transformer(str(tiny("Bert")))
    theirs = SentenceTransformer(
        modules=[
            transformer,
            modules.Pooling(32, pooling_mode=pooling),
            modules.Dense(32, 24, activation_function=torch.nn.Tanh()),
            modules.LayerNorm(24),
            modules.Normalize(),
        ],
        prompts={"query": "query: ", "document": "passage: "},
        device="cpu",
    )
    theirs.save(str(tmp_path / "st"))
    ours = Encoder.load(str(tmp_path / "st"))
    assert ours.dim == 24
    sample = passages[:40]
    np.testing.assert_allclose(ours.encode_query(sample), theirs.encode_query(sample), atol=1e-5)
    np.testing.assert_allclose(ours.encode_document(sample), theirs.encode_document(sample), atol=1e-5)


def test_a_saved_encoder_opens_here_and_in_sentence_transformers_with_equal_vectors(
    minilm: Path, tmp_path: Path, passages: list[str]
) -> None:
    encoder = Encoder.load(str(minilm), num_layers=2, max_query_length=16, max_document_length=40)
    encoder.save(tmp_path / "saved")
    again = Encoder.load(str(tmp_path / "saved"))
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    sample = passages[:60]
    expected = encoder.encode_document(sample)
    assert again.fingerprint() == encoder.fingerprint()
    np.testing.assert_array_equal(again.encode_document(sample), expected)
    np.testing.assert_allclose(theirs.encode_document(sample), expected, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_query(sample), encoder.encode_query(sample), atol=1e-5)


def test_a_dense_head_survives_saving(tiny: Callable[..., Path], tmp_path: Path) -> None:
    transformer = modules.Transformer(str(tiny("Bert")))
    theirs = SentenceTransformer(modules=[transformer, modules.Pooling(32), modules.Dense(32, 8)], device="cpu")
    theirs.save(str(tmp_path / "st"))
    Encoder.load(str(tmp_path / "st")).save(tmp_path / "ours")
    reloaded = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(reloaded.encode(["some text"]), theirs.encode(["some text"]), atol=1e-6)


@pytest.mark.parametrize(
    "architecture", ["Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "Camembert", "ModernBert"]
)
def test_packed_equals_padded_for_every_architecture_that_supports_it(
    tiny: Callable[..., Path], architecture: str
) -> None:
    folder = str(tiny(architecture))
    packed = Encoder.load(folder, attention="packed")
    padded = Encoder.load(folder, attention="padded")
    assert (packed.backbone.mode, padded.backbone.mode) == ("packed", "padded")
    texts = ["", "a", "two words", "many words " * 50, *(f"text number {i} " * (i % 13) for i in range(30))]
    np.testing.assert_allclose(packed.encode(texts), padded.encode(texts), atol=2e-5)


def test_an_architecture_without_pluggable_attention_is_padded_and_says_why(tiny: Callable[..., Path]) -> None:
    folder = str(tiny("MPNet", max_position_embeddings=600))
    encoder = Encoder.load(folder)
    assert encoder.info()["attention"] == "padded"
    assert "does not support" in encoder.info()["attention_reason"]
    theirs = SentenceTransformer(modules=[modules.Transformer(folder), modules.Pooling(32)], device="cpu")
    texts = ["", "a", "some more words here", "long " * 100]
    np.testing.assert_allclose(encoder.encode(texts), theirs.encode(texts), atol=1e-5)
    with pytest.raises(ConfigError, match="not possible"):
        Encoder.load(folder, attention="packed")


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "ModernBert"])
def test_gradients_of_packed_training_equal_those_of_padded(tiny: Callable[..., Path], architecture: str) -> None:
    folder = str(tiny(architecture))
    gradients = []
    texts = ["", "a b", "one two three four", "five " * 30, "same length here", "same size there"]
    for attention in ("packed", "padded"):
        encoder = Encoder.load(folder, attention=attention, normalize=True)
        encoder.backbone.set_dropout(0.0)
        encoder.train()
        tokens = encoder._tokenize(texts, 64)
        from ance_fast.data.packing import Packer

        (batch,) = Packer([(tokens.values, tokens.offsets)]).batches(token_budget=10_000)
        embeddings = encoder(batch)
        weights = torch.linspace(-1, 1, embeddings.numel()).reshape(embeddings.shape)
        (embeddings * weights).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, packed in gradients[0].items():
        padded = gradients[1][name]
        assert (packed is None) == (padded is None), name
        if packed is not None and padded is not None:
            torch.testing.assert_close(packed, padded, atol=2e-5, rtol=1e-4, msg=name)


def test_a_string_gives_a_vector_and_a_list_a_matrix_whatever_the_budget(minilm: Path) -> None:
    encoder = Encoder.load(str(minilm), num_layers=1)
    single = encoder.encode("hello world")
    assert (single.shape, single.dtype) == ((384,), np.float32)
    assert encoder.encode([]).shape == (0, 384)
    texts = [f"{'word ' * (i % 9)}{i}" for i in range(40)]
    small, large = encoder.encode(texts, batch_tokens=16), encoder.encode(texts, batch_tokens=4096)
    np.testing.assert_allclose(small, large, atol=1e-6)
    assert isinstance(encoder.encode(texts[:2], output="torch"), torch.Tensor)


def test_embeddings_on_a_gpu_go_to_cupy_without_a_copy(tiny: Callable[..., Path], monkeypatch: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    cupy = pytest.importorskip("cupy", reason="no GPU array library (cupy)")
    encoder = Encoder.load(str(tiny("Bert")), device="cuda", dtype="float32")
    texts = ["one text", "another one"]
    expected = encoder.encode(texts)
    shared: list[torch.Tensor] = []
    inner = encoder.encode_tokens
    monkeypatch.setattr(encoder, "encode_tokens", lambda *a, **k: shared.append(inner(*a, **k)) or shared[-1])
    with torch.cuda.stream(torch.cuda.Stream()), cupy.cuda.Stream(non_blocking=True):
        array = encoder.encode(texts, output="cupy")
        assert array.data.ptr == shared[0].data_ptr()
        np.testing.assert_allclose((array * 2).get(), 2 * expected, atol=1e-6)


def test_truncate_dim_and_normalize_are_those_of_sentence_transformers(minilm: Path) -> None:
    theirs = SentenceTransformer(str(minilm), device="cpu")
    encoder = Encoder.load(str(minilm))
    for normalize in (True, False):
        ours = encoder.encode(["some text", "another"], truncate_dim=64, normalize_embeddings=normalize)
        expected = theirs.encode(["some text", "another"], truncate_dim=64, normalize_embeddings=normalize)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_what_is_not_text_or_not_known_is_refused(minilm: Path) -> None:
    encoder = Encoder.load(str(minilm), num_layers=1)
    with pytest.raises(TypeError, match=r"inputs\[1\] is int"):
        encoder.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="prompt_name='nope'"):
        encoder.encode("a", prompt_name="nope")
    with pytest.raises(ConfigError, match="numpy, torch or cupy"):
        encoder.encode("a", output="jax")
    with pytest.raises(ConfigError, match="output='cupy' needs the encoder on a GPU; it is on cpu"):
        Encoder.load(str(minilm), device="cpu", num_layers=1).encode("a", output="cupy")
    with pytest.raises(ConfigError, match="device='foo'"):
        Encoder.load(str(minilm), device="foo")
    with pytest.raises(ConfigError, match="num_layers=9"):
        Encoder.load(str(minilm), num_layers=9)


def test_a_missing_folder_or_one_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        Encoder.load(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"neither config.json nor modules.json"):
        Encoder.load(str(tmp_path / "empty"))


def test_weights_of_another_architecture_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("Bert"), tmp_path / "mixed")
    shutil.copy(tiny("DistilBert") / "model.safetensors", tmp_path / "mixed" / "model.safetensors")
    with pytest.raises(ArtifactError, match="another architecture or is incomplete"):
        Encoder.load(str(tmp_path / "mixed"))
    encoder = Encoder.load(str(tiny("Bert")))
    with pytest.raises(ArtifactError, match="another architecture"):
        encoder.load_weights(tiny("Bert", hidden_size=64))


def test_a_damaged_saved_encoder_is_noticed_by_its_manifest(tiny: Callable[..., Path], tmp_path: Path) -> None:
    Encoder.load(str(tiny("Bert"))).save(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10] + b"0123456789")
    with pytest.raises(ArtifactError, match="checksum"):
        open_artifact(tmp_path / "saved", "encoder")
    with pytest.raises(ArtifactError, match="checksum"):
        Encoder.load(str(tmp_path / "saved"))


def test_the_fingerprint_is_that_of_the_checkpoint_whatever_the_dtype_lengths_and_a_missing_pooler(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "no-pooler"
    shutil.copytree(tiny("Bert"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    prints = {
        Encoder.load(str(folder)).fingerprint(),
        Encoder.load(str(folder), dtype="bfloat16").fingerprint(),
        Encoder.load(str(folder), max_document_length=20).fingerprint(),
        Encoder.load(str(tiny("Bert"))).fingerprint(),
    }
    assert len(prints) == 1


def test_a_named_prompt_is_used_by_every_way_of_encoding(tiny: Callable[..., Path], tmp_path: Path) -> None:
    theirs = SentenceTransformer(
        modules=[modules.Transformer(str(tiny("Bert"))), modules.Pooling(32)],
        prompts={"query": "query: ", "document": "passage: ", "title": "title: "},
        device="cpu",
    )
    theirs.save(str(tmp_path / "st"))
    ours = Encoder.load(str(tmp_path / "st"))
    for encode in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, encode)(["some text"], prompt_name="title")
        np.testing.assert_allclose(getattr(ours, encode)(["some text"], prompt_name="title"), expected, atol=1e-5)


def test_truncated_weights_of_a_foreign_folder_are_an_error_that_names_it(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny("Bert"), tmp_path / "cut")
    with open(tmp_path / "cut" / "model.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(ArtifactError, match="cut"):
        Encoder.load(str(tmp_path / "cut"))


def test_the_fingerprint_follows_the_weights_and_the_settings(tiny: Callable[..., Path]) -> None:
    folder = str(tiny("Bert"))
    encoder = Encoder.load(folder)
    first = encoder.fingerprint()
    assert Encoder.load(folder).fingerprint() == first
    assert Encoder.load(folder, pooling="cls").fingerprint() != first
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert encoder.fingerprint() != first


def test_an_encoder_may_be_placed_again_packed_or_padded(small_bert: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(small_bert()), device="cpu")
    expected = encoder.encode(["some words", "other words and more"])
    for attention in ("packed", "padded", "auto", "packed"):
        encoder.placed("cpu", "float32", attention)
        assert encoder.info()["attention"] == ("padded" if attention == "padded" else "packed")
        np.testing.assert_allclose(encoder.encode(["some words", "other words and more"]), expected, atol=1e-5)


def test_another_length_than_that_of_the_chunks_is_refused_when_loading_too(
    small_bert: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = Encoder.load(str(small_bert()), device="cpu")
    encoder.set_chunks(ChunkRules(16, 4, first_token=True, keep_empty=False))
    encoder.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="max_document_length=32: documents are cut into chunks of 16 tokens"):
        Encoder.load(str(tmp_path / "saved"), max_document_length=32)
    again = Encoder.load(str(tmp_path / "saved"), max_document_length=16, max_query_length=8)
    assert (again.max_document_length, again.max_query_length) == (16, 8)
