"""Encoders of two towers against sentence-transformers' Router and against the towers by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from torch import nn

from ance_fast import Encoder
from ance_fast.artifacts import open_artifact
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.packing import PackedBatch, Packer, ragged
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.unused_weights import zero_gradients

TEXTS = ["", "who painted sunflowers", "a", "many words " * 60, "[SEP] literal", *(f"text {i} " * i for i in range(9))]


@pytest.fixture(scope="module")
def folders(small_bert: Callable[..., Path]) -> tuple[Path, Path]:
    """Two BERTs with other weights and depths."""
    return small_bert(1, num_hidden_layers=1), small_bert(2)


@pytest.fixture(scope="module")
def towers(folders: tuple[Path, Path]) -> tuple[Encoder, Encoder]:
    query, document = (Encoder.load(str(folder), device="cpu", pooling="cls") for folder in folders)
    return query, document


@pytest.fixture(scope="module")
def pair(towers: tuple[Encoder, Encoder]) -> Encoder:
    return Encoder.pair(*towers)


def packed(texts: int = 5, *, for_queries: bool = False) -> PackedBatch:
    lists = [list(range(100, 103 + 2 * number)) for number in range(texts)]
    (batch,) = Packer([ragged(lists)]).batches(token_budget=10_000)
    return replace(batch, for_queries=for_queries)


def test_queries_go_through_one_tower_and_everything_else_through_the_other(
    towers: tuple[Encoder, Encoder], pair: Encoder
) -> None:
    query, document = towers
    np.testing.assert_array_equal(pair.encode_query(TEXTS), query.encode(TEXTS))
    np.testing.assert_array_equal(pair.encode_document(TEXTS), document.encode(TEXTS))
    np.testing.assert_array_equal(pair.encode(TEXTS), document.encode(TEXTS))
    assert np.abs(query.encode(TEXTS) - document.encode(TEXTS)).max() > 0.1
    assert torch.equal(pair(packed(for_queries=True)), query(packed()))
    assert torch.equal(pair(packed()), document(packed()))
    assert torch.equal(document(packed(for_queries=True)), document(packed())), "a shared tower is for both"
    assert pair.for_queries.for_queries is pair.for_queries
    assert document.for_queries is document


def test_a_saved_pair_opens_here_and_in_sentence_transformers_with_equal_vectors(
    towers: tuple[Encoder, Encoder], tmp_path: Path
) -> None:
    pair = Encoder.pair(*towers)
    pair.set_lengths(max_query_length=7, max_document_length=30)
    pair.set_chunks(ChunkRules(30, 4, first_token=True, keep_empty=False))
    pair.save(tmp_path / "saved")
    open_artifact(tmp_path / "saved")
    again = Encoder.load(str(tmp_path / "saved"), device="cpu")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert again.fingerprint() == pair.fingerprint()
    assert (again.max_query_length, again.max_document_length) == (7, 30)
    assert (again.chunks, again.for_queries.chunks) == (pair.chunks, None), "queries are not cut into chunks"
    for method in ("encode_query", "encode_document", "encode"):
        expected = getattr(pair, method)(TEXTS)
        np.testing.assert_array_equal(getattr(again, method)(TEXTS), expected)
        np.testing.assert_allclose(getattr(theirs, method)(TEXTS), expected, atol=1e-5)


def test_each_tower_of_a_saved_pair_opens_by_itself(
    towers: tuple[Encoder, Encoder], pair: Encoder, tmp_path: Path
) -> None:
    pair.save(tmp_path / "saved")
    for route, tower in zip(("query", "document"), towers, strict=True):
        alone = Encoder.load(str(tmp_path / "saved" / route), device="cpu")
        assert alone.query_encoder is None
        with pytest.raises(ArtifactError, match=f"holds {route}, which this encoder was read from"):
            alone.save(tmp_path / "saved")
        np.testing.assert_array_equal(alone.encode(TEXTS), tower.encode(TEXTS))


@pytest.mark.parametrize("head", ["in the routes", "after the router"])
def test_a_router_that_sentence_transformers_wrote_gives_its_vectors(
    folders: tuple[Path, Path], tmp_path: Path, head: str
) -> None:
    def chain(folder: Path) -> list[nn.Module]:
        return [modules.Transformer(str(folder)), modules.Pooling(32, pooling_mode="mean")]

    def dense() -> nn.Module:
        return modules.Dense(32, 24, activation_function=torch.nn.Tanh())

    inside = [dense()] if head == "in the routes" else []
    outside = [] if inside else [dense(), modules.Normalize()]
    query, document = (chain(folder) + [dense() for _ in inside] for folder in folders)
    router = modules.Router.for_query_document(query_modules=query, document_modules=document)
    prompts = {"query": "query: ", "document": "passage: "}
    theirs = SentenceTransformer(modules=[router, *outside], prompts=prompts, device="cpu")
    theirs.save(str(tmp_path / "st"))
    ours = Encoder.load(str(tmp_path / "st"), device="cpu")
    assert (ours.dim, ours.query_prompt, ours.for_queries.query_prompt) == (24, "query: ", "query: ")
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)


def test_a_router_whose_routes_share_their_modules_is_one_tower(folders: tuple[Path, Path], tmp_path: Path) -> None:
    chain = [modules.Transformer(str(folders[0])), modules.Pooling(32)]
    router = modules.Router.for_query_document(query_modules=chain, document_modules=chain)
    theirs = SentenceTransformer(modules=[router], device="cpu")
    theirs.save(str(tmp_path / "st"))
    ours = Encoder.load(str(tmp_path / "st"), device="cpu")
    assert ours.query_encoder is None
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)


def test_the_fingerprint_of_a_pair_is_that_of_both_towers(
    folders: tuple[Path, Path], towers: tuple[Encoder, Encoder], pair: Encoder
) -> None:
    query, document = towers
    prints = {
        pair.fingerprint(),
        query.fingerprint(),
        document.fingerprint(),
        Encoder.pair(*towers[::-1]).fingerprint(),
    }
    assert len(prints) == 4
    changed = Encoder.pair(query.two_towers().for_queries, document)
    assert changed.fingerprint() == pair.fingerprint()
    with torch.no_grad():
        next(changed.for_queries.backbone.parameters())[0, 0] += 1
    assert changed.fingerprint() != pair.fingerprint()
    half = Encoder.pair(*(Encoder.load(str(folder), "cpu", "bfloat16", pooling="cls") for folder in folders))
    assert half.fingerprint() == pair.fingerprint()


def test_two_towers_of_one_begin_alike_and_share_nothing(towers: tuple[Encoder, Encoder]) -> None:
    one = towers[1]
    two = one.two_towers()
    np.testing.assert_array_equal(two.encode_query(TEXTS), one.encode_query(TEXTS))
    ids = [{parameter.data_ptr() for parameter in tower.backbone.parameters()} for tower in two.towers]
    assert len(two.towers) == 2
    assert not ids[0] & ids[1]
    assert two.two_towers() is two


def test_weights_are_loaded_into_both_towers(pair: Encoder, tmp_path: Path) -> None:
    pair.save(tmp_path / "saved")
    other = Encoder.load(str(tmp_path / "saved"), device="cpu")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert other.fingerprint() != pair.fingerprint()
    other.load_weights(tmp_path / "saved")
    assert other.fingerprint() == pair.fingerprint()
    with pytest.raises(ArtifactError, match="another architecture"):
        other.for_queries.load_weights(tmp_path / "saved")


def test_towers_that_cannot_be_compared_are_refused(
    small_bert: Callable[..., Path], folders: tuple[Path, Path], towers: tuple[Encoder, Encoder]
) -> None:
    query, document = towers
    wide = Encoder.load(str(small_bert(hidden_size=48, num_hidden_layers=1)), device="cpu")
    unit = Encoder.load(str(folders[0]), device="cpu", normalize=True)
    for wrong, message in (
        (wide, "48 dimensions, the documents' 32"),
        (unit, "only the query tower L2-normalises"),
        (document, "two_towers"),
    ):
        with pytest.raises(ConfigError, match=message):
            Encoder.pair(wrong, document)
    with pytest.raises(ConfigError, match="max_query_length=1000: this encoder takes 3 to 80"):
        Encoder.pair(query, document).set_lengths(max_query_length=1000)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ArtifactError, "router_config.json: missing"),
        ("[]", ArtifactError, "router_config.json: not the configuration of a Router"),
        ('{"types": {}, "structure": {"query": ["x"]}}', ArtifactError, "KeyError: 'x'"),
        ('{"types": {"../x": "a.B"}, "structure": {"query": ["../x"]}}', ArtifactError, "outside the checkpoint"),
        ('{"types": {}, "structure": {"text": [], "image": []}}', ConfigError, "the routes are image, text"),
        (
            '{"types": {}, "structure": {"query": [], "document": []}, "parameters": {"route_mappings": {"a": "b"}}}',
            ConfigError,
            "with route_mappings",
        ),
        ('{"types": {}, "structure": {"query": [], "document": []}}', ConfigError, "expected Transformer, Pooling"),
    ],
)
def test_a_router_that_is_not_of_two_towers_is_refused(
    pair: Encoder, tmp_path: Path, content: str | None, error: type[Exception], message: str
) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    pair.write(folder)
    if content is None:
        (folder / "router_config.json").unlink()
    else:
        (folder / "router_config.json").write_text(content)
    with pytest.raises(error, match=message):
        Encoder.load(str(folder))


def test_what_holds_for_the_whole_stands_in_the_root(pair: Encoder, tmp_path: Path) -> None:
    pair.write(tmp_path)
    whole, own = (json.loads((tmp_path / p / "config_sentence_transformers.json").read_text()) for p in (".", "query"))
    assert whole == own
    assert whole["similarity_fn_name"] == pair.layout.similarity


def gradients(pair: Encoder, run: Callable[[], torch.Tensor]) -> dict[str, Any]:
    pair.zero_grad(set_to_none=True)
    run().square().sum().backward()
    return {name: parameter.grad for name, parameter in pair.named_parameters()}


def test_a_pass_that_reaches_all_weights_changes_neither_vectors_nor_gradients(pair: Encoder) -> None:
    for for_queries in (False, True):
        batch = packed(for_queries=for_queries)
        assert torch.equal(pair(batch, reach_all=True), pair(batch))
        alone = gradients(pair, lambda batch=batch: pair(batch))
        whole = gradients(pair, lambda batch=batch: pair(batch, reach_all=True))
        for name, parameter in pair.named_parameters():
            used = parameter.requires_grad and name.startswith("query_encoder.") == for_queries
            assert (alone[name] is not None) == used, name
            if used:
                assert torch.equal(whole[name], alone[name]), name
            elif parameter.requires_grad:
                assert not whole[name].any(), name
            else:
                assert whole[name] is None, name


def test_a_zero_gradient_is_zero_whatever_the_weight(pair: Encoder) -> None:
    weight = torch.tensor([float("inf"), float("nan"), 1.0], requires_grad=True)
    output = torch.ones(2, requires_grad=True)
    zero_gradients(output * 3, [weight]).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0, 0]
    assert output.grad is not None
    assert output.grad.tolist() == [3, 3]
