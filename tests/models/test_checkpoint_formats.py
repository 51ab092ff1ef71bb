"""Checkpoints of every program: one set of weights gives the same vectors from each, and on the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from ance_fast import Encoder
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.packing import PackedBatch, Packer
from ance_fast.models.checkpoint_formats import FORMATS, find_format, read_checkpoint, with_head, write_checkpoint
from ance_fast.models.foreign import ReadOptions

TEXTS = ["", "What is the CAPITAL of the country", "some words", "words and " * 60, "a </s> b", "Ünïcödé \t東京"]


def layouts(released: Any) -> dict[str, Path]:
    """The same weights in every layout with a head, made by hand."""
    prefixed = {f"ance_encoder.{name}": value for name, value in released.ance.items()}
    safe = released.ance_folder("ance-safetensors")
    save_file({name: value.contiguous().clone() for name, value in released.ance.items()}, safe / "model.safetensors")
    (safe / "pytorch_model.bin").write_bytes(b"safetensors comes first")
    return {
        "sentence-transformers": released.sentence_transformers_folder("st"),
        "ance": released.ance_folder("ance"),
        "ance-safetensors": safe,
        "castorini": released.ance_folder("castorini", prefixed, architectures=["AnceEncoder"]),
        "seed-hf": released.seed_folder("seed-hf"),
        "seed-hf-tar": released.seed_tar("seed.tar.gz"),
        "seed-finetuned": released.seed_finetuned("model.pt"),
    }


def test_one_set_of_weights_gives_the_same_vectors_from_every_layout(
    released: Any, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    expected = released.vectors(token_rows)
    found = {}
    for name, path in layouts(released).items():
        form = find_format(path)
        assert name.startswith(form)
        if name == "seed-finetuned":
            encoder = read_checkpoint(path, None, ReadOptions(heads=2)).placed()
        else:
            encoder = Encoder.load(str(path))
        assert encoder.info()["attention"] == "packed"
        assert encoder.info()["stack"] == "fused"
        assert (encoder.layout.pooling, encoder.dim) == ("cls", 24)
        found[name] = embed(encoder, token_rows)
        torch.testing.assert_close(found[name], expected, atol=2e-5, rtol=1e-5)
    for name, vectors in found.items():
        assert torch.equal(vectors, found["ance"]), name


# Without a head, or of two towers.
OTHERS = ("seed-fairseq", "dpr-cp", "dpr-hf", "seed-nq")


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.write and name not in OTHERS])
def test_what_is_written_in_one_format_and_read_again_is_the_same_encoder(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor], form: str
) -> None:
    kind = "seed" if form.startswith("seed") else "ance"
    source = released.seed_folder("from") if kind == "seed" else released.ance_folder("from")
    encoder = Encoder.load(str(source), max_query_length=9)
    chunks = ChunkRules(33, 2, first_token=True, keep_empty=False)
    encoder.set_chunks(chunks)
    expected, texts = embed(encoder, token_rows), encoder.encode(TEXTS)
    targets = {"seed-hf": ["folder", "a.tar", "b.tgz"]}.get(form, ["folder"])
    for name in targets:
        target = tmp_path / "to" / name
        write_checkpoint(encoder, target, form)
        assert find_format(target) == form
        options = ReadOptions(heads=2, tokenizer=source) if form == "seed-finetuned" else ReadOptions()
        again = read_checkpoint(target, None, options).placed()
        assert torch.equal(embed(again, token_rows), expected)
        assert (again.encode(TEXTS) == texts).all()
        assert again.fingerprint() == encoder.fingerprint()
        if form != "seed-finetuned":  # it holds tensors and nothing else
            assert (again.max_query_length, again.max_document_length, again.chunks) == (9, 33, chunks)
            assert (Encoder.load(str(target)).encode_query(TEXTS) == encoder.encode_query(TEXTS)).all()
        assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


def test_a_chain_of_formats_ends_in_a_folder_that_sentence_transformers_opens(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    first = path = released.sentence_transformers_folder("st")
    for form in ("ance", "sentence-transformers", "castorini", "sentence-transformers"):
        target = tmp_path / f"{path.name}-{form}"
        write_checkpoint(read_checkpoint(path, None, ReadOptions()), target, form)
        path = target
    assert torch.equal(embed(Encoder.load(str(path)), token_rows), embed(Encoder.load(str(first)), token_rows))
    texts = [text for text in TEXTS if text]
    one, two = (SentenceTransformer(str(folder), device="cpu").encode(texts) for folder in (first, path))
    torch.testing.assert_close(torch.from_numpy(two), torch.from_numpy(one), atol=1e-6, rtol=1e-6)
    ours = Encoder.load(str(path)).encode(texts)
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(two), atol=1e-5, rtol=1e-5)


class RobertaDotNllLn(RobertaForSequenceClassification):
    """The model that microsoft/ANCE and castorini load, as its documentation describes it."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        self.embeddingHead = nn.Linear(config.hidden_size, 24)
        self.norm = nn.LayerNorm(24)


@pytest.mark.parametrize("form", ["ance", "castorini"])
def test_what_is_written_for_ance_gives_the_same_vectors_through_transformers(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor], form: str
) -> None:
    encoder = Encoder.load(str(released.ance_folder("from")))
    write_checkpoint(encoder, tmp_path / "to", form)
    state = torch.load(tmp_path / "to" / "pytorch_model.bin", weights_only=True)
    theirs = RobertaDotNllLn(RobertaConfig.from_pretrained(tmp_path / "to"))
    report = theirs.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith(("roberta.pooler.", "classifier.")) for name in report.missing_keys)
    released.model, released.head, released.norm = theirs.roberta.eval(), theirs.embeddingHead, theirs.norm
    torch.testing.assert_close(released.vectors(token_rows), embed(encoder, token_rows), atol=2e-5, rtol=1e-5)
    # The form of torch 1.x begins with its magic number, not with a zip archive.
    assert (tmp_path / "to" / "pytorch_model.bin").read_bytes()[:2] != b"PK"
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in (tmp_path / "to").iterdir()}


def test_mean_pooling_is_kept_beside_the_checkpoint(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    encoder = Encoder.load(str(released.ance_folder("from")), pooling="mean")
    expected = released.vectors(token_rows, "mean")
    torch.testing.assert_close(embed(encoder, token_rows), expected, atol=2e-5, rtol=1e-5)
    write_checkpoint(encoder, tmp_path / "to", "ance")
    again = Encoder.load(str(tmp_path / "to"))
    assert again.layout.pooling == "mean"
    torch.testing.assert_close(embed(again, token_rows), expected, atol=2e-5, rtol=1e-5)


class FairseqEncoder(nn.Module):
    """fairseq's TransformerSentenceEncoder with SEED-Encoder's settings, one sequence after the other, in torch."""

    def __init__(self, state: dict[str, Tensor], layers: int, heads: int) -> None:
        super().__init__()
        self.state, self.layers, self.heads = state, layers, heads

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def forward(self, ids: list[int]) -> Tensor:
        """Hidden states [len(ids), width]; token 1 is padding and has no place."""
        tokens = torch.tensor([token for token in ids if token != 1])
        x = self.state["embed_tokens.weight"][tokens]
        x = x + self.state["embed_positions.weight"][2 : 2 + len(tokens)]
        x = self.norm(x, "emb_layer_norm")
        for layer in (f"layers.{number}" for number in range(self.layers)):
            query, key, value = (self.linear(x, f"{layer}.self_attn.{part}_proj") for part in "qkv")
            mixed = []
            for q, k, v in zip(*(part.chunk(self.heads, -1) for part in (query, key, value)), strict=True):
                mixed.append(torch.softmax(q * q.shape[-1] ** -0.5 @ k.T, -1) @ v)
            attended = self.linear(torch.cat(mixed, -1), f"{layer}.self_attn.out_proj")
            x = self.norm(x + attended, f"{layer}.self_attn_layer_norm")
            wide = self.linear(x, f"{layer}.fc1")
            wide = 0.5 * wide * (1 + torch.erf(wide / 2**0.5))
            x = self.norm(x + self.linear(wide, f"{layer}.fc2"), f"{layer}.final_layer_norm")
        return x


@pytest.mark.parametrize("head", [True, False])
def test_seed_encoder_is_fairseqs_encoder_packed_padded_and_fused(
    released: Any, token_rows: list[list[int]], embed: Callable[..., Tensor], head: bool
) -> None:
    theirs = FairseqEncoder(released.fairseq, layers=2, heads=2)
    first = torch.stack([theirs(row)[0] for row in token_rows])
    if head:
        expected, path = released.norm(released.head(first)).detach(), released.seed_folder("seed")
    else:
        expected, path = first, released.seed_fairseq("pretrained.pt")
    for attention in ("packed", "padded"):
        encoder = read_checkpoint(path, None, ReadOptions()).placed(attention=attention)
        assert encoder.info()["stack"] == ("fused" if attention == "packed" else "transformers")
        torch.testing.assert_close(embed(encoder, token_rows), expected, atol=2e-5, rtol=1e-5)
        batch = one_batch(token_rows)
        with torch.no_grad():  # as training runs it
            torch.testing.assert_close(encoder(batch), expected[batch.rows], atol=2e-5, rtol=1e-5)


def one_batch(rows: list[list[int]]) -> PackedBatch:
    values = np.array([token for row in rows for token in row], dtype=np.uint16)
    table = [(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))]
    (batch,) = Packer(table).batches(token_budget=10_000)
    return batch


def test_a_pretrained_file_of_fairseq_comes_back_as_it_was(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    encoder = read_checkpoint(released.seed_fairseq("pretrained.pt"), None, ReadOptions())
    write_checkpoint(encoder, tmp_path / "again.pt", "seed-fairseq")
    written = torch.load(tmp_path / "again.pt", weights_only=False)
    # What the original's loader asserts: the encoder's tensors and no others.
    assert set(written["model"]) == {f"encoder.sentence_encoder.{name}" for name in released.fairseq}
    assert all(torch.equal(written["model"][f"encoder.sentence_encoder.{k}"], v) for k, v in released.fairseq.items())
    again = read_checkpoint(tmp_path / "again.pt", None, ReadOptions())
    assert torch.equal(embed(again, token_rows), embed(encoder, token_rows))


def test_token_types_stay_zero_when_seed_encoder_is_trained_and_saved(
    released: Any, tmp_path: Path, token_rows: list[list[int]]
) -> None:
    encoder = Encoder.load(str(released.seed_folder("seed")))
    encoder.save(tmp_path / "saved")
    bpe = Encoder.load(str(released.ance_folder("ance"))).tokenizer
    write_checkpoint(Encoder(encoder.backbone, encoder.head, bpe, encoder.layout), tmp_path / "bpe", "ance")
    for one in (encoder, *(Encoder.load(str(tmp_path / name)) for name in ("saved", "bpe"))):
        assert not one.backbone.model.embeddings.token_type_embeddings.weight.any()
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.1)
        one(one_batch(token_rows)).sum().backward()
        optimizer.step()
        assert not one.backbone.model.embeddings.token_type_embeddings.weight.any()
        assert all(weight.grad is not None for weight in one.parameters() if weight.requires_grad)


def test_dropouts_of_a_seed_encoder_are_those_of_its_configuration(released: Any) -> None:
    encoder = Encoder.load(str(released.seed_folder("seed", dropout=0.25, attention_dropout=0)))
    config = encoder.backbone.model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0)


def test_token_types_of_roberta_are_added_to_the_positions_that_fairseq_has(
    released: Any, tmp_path: Path, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    torch.nn.init.normal_(released.model.embeddings.token_type_embeddings.weight)
    encoder = Encoder.load(str(released.ance_folder("from")))
    write_checkpoint(encoder, tmp_path / "model.pt", "seed-finetuned")
    again = read_checkpoint(
        tmp_path / "model.pt", None, ReadOptions(heads=2, tokenizer=released.root / "seed-vocabulary")
    )
    torch.testing.assert_close(embed(again.placed(), token_rows), embed(encoder, token_rows), atol=1e-5, rtol=1e-5)


def test_a_fresh_head_is_that_of_anything_but_the_seed(released: Any) -> None:
    path = released.seed_fairseq("pretrained.pt")
    torch.manual_seed(5)
    one = with_head(read_checkpoint(path, None, ReadOptions()), "fresh", seed=7)
    torch.manual_seed(6)
    two = with_head(read_checkpoint(path, None, ReadOptions()), "fresh", seed=7)
    other = with_head(read_checkpoint(path, None, ReadOptions()), "fresh", seed=8)
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    linear, norm = one.head[0].linear.requires_grad_(False), one.head[1].norm
    assert linear.weight.shape == (32, 32)
    assert 0.017 < float(linear.weight.std()) < 0.023
    assert 0.1 < float(linear.bias.abs().max()) <= 32**-0.5
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()
    assert norm.eps == 1e-5
    assert with_head(one, "none").dim == 32


def test_only_the_first_layers_are_kept_where_that_is_asked_for(
    released: Any, token_rows: list[list[int]], embed: Callable[..., Tensor]
) -> None:
    encoder = Encoder.load(str(released.ance_folder("ance")), num_layers=1)
    released.model.encoder.layer = released.model.encoder.layer[:1]
    torch.testing.assert_close(embed(encoder, token_rows), released.vectors(token_rows), atol=2e-5, rtol=1e-5)


def test_released_folders_get_the_rules_of_their_texts_and_written_ones_keep_theirs(
    released: Any, tmp_path: Path
) -> None:
    folder = str(released.ance_folder("ance"))
    lower, cased = Encoder.load(folder), Encoder.load(folder, text_preset="ance-cased")
    assert (lower.encode(["The CAPITAL"]) == lower.encode(["the capital"])).all()
    assert (cased.encode(["The CAPITAL"]) != cased.encode(["the capital"])).any()
    write_checkpoint(cased, tmp_path / "cased", "ance")
    again = Encoder.load(str(tmp_path / "cased"))
    assert (again.encode(["The CAPITAL"]) == cased.encode(["The CAPITAL"])).all()
    seed = Encoder.load(str(released.seed_folder("seed")))
    assert (seed.encode(["The"]) == seed.encode(["the"])).all()
