from __future__ import annotations

import logging

import faiss
import numpy as np
import pytest

from ance_fast.errors import ConfigError
from ance_fast.index import factory as factories
from ance_fast.index.index import Index


def gaussian(count: int, dim: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("factory", ["banana", "", "Flat,", "IVF0,Flat", "HNSW0", "PQ0", "LSH", "IVF8;Flat"])
def test_a_string_that_is_no_inner_product_factory_is_quoted_with_examples(factory: str) -> None:
    with pytest.raises(ConfigError, match="OPQ16,IVF1024,PQ16") as error:
        Index.build(gaussian(20), factory=factory)
    assert repr(factory) in str(error.value)


def test_lists_without_an_encoding_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'IVF64,Flat'"):
        Index.build(gaussian(20), factory="IVF64")


def test_fewer_vectors_than_lists_names_both_and_the_index_that_fits() -> None:
    with pytest.raises(ConfigError, match=r"IVF4096 needs at least 4096 vectors .* corpus has 1200; use IVF16 or Flat"):
        Index.build(gaussian(1200), factory="IVF4096,Flat")
    with pytest.raises(ConfigError, match="corpus has 5; use Flat"):
        Index.build(gaussian(5), factory="IVF8,Flat")
    with pytest.raises(ConfigError, match="train_size is 7; use Flat"):
        Index.build(gaussian(400), factory="IVF8,Flat", train_size=7)
    with pytest.raises(ConfigError, match="must be at least 1"):
        Index.build(gaussian(400), factory="IVF8,Flat", train_size=0)


@pytest.mark.parametrize("factory", ["PQ4", "IVF4,PQ4", "OPQ4,IVF4,PQ4", "PQ4,RFlat", "HNSW8,PQ4"])
def test_fewer_vectors_than_codes_are_refused_wherever_the_quantiser_sits(factory: str) -> None:
    with pytest.raises(ConfigError, match=r"needs at least 256 vectors .* the corpus has 255"):
        Index.build(gaussian(255), factory=factory)


def test_four_bit_codes_need_sixteen_vectors_only() -> None:
    assert len(Index.build(gaussian(20), factory="PQ4x4")) == 20


def test_an_index_to_be_trained_refuses_an_empty_corpus() -> None:
    with pytest.raises(ConfigError, match=r"'SQ8' must be trained .* use Flat"):
        Index.build(gaussian(0), factory="SQ8")


@pytest.mark.parametrize(
    ("factory", "dim", "message"),
    [
        ("PQ8", 30, "PQ8 cuts a vector into 8 equal parts, which 30 dimensions do not allow; PQ with 1, 2, 3, 5"),
        ("IVF4,PQ16", 24, "PQ16 cuts .* 24 dimensions"),
        ("OPQ8,IVF4,PQ8", 30, "OPQ8 cuts"),
        ("OPQ5_12,IVF4,PQ8", 30, "PQ8 cuts .* 12 dimensions"),
        ("PCA12,PQ8", 32, "PQ8 cuts .* 12 dimensions"),
    ],
)
def test_dimensions_the_quantiser_cannot_split_evenly_are_explained(factory: str, dim: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        factories.create(faiss, factory, dim, seed=0)


def test_a_reduction_to_a_divisible_dimension_is_accepted() -> None:
    assert factories.create(faiss, "OPQ6_24,IVF4,PQ8", 30, seed=0).d == 30


def test_few_vectors_a_list_give_one_warning(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING, logger="ance_fast"):
        Index.build(gaussian(300), factory="OPQ4,IVF16,PQ4")
    assert [record.message for record in caplog.records] == [
        "OPQ4,IVF16,PQ4: trained on 300 vectors, 18 a list; 39 a list are recommended, the lists will be uneven"
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("factory", ["IVF8,Flat", "IVF8,PQ4", "OPQ4,IVF8,PQ4"])
def test_training_depends_on_the_seed_and_on_nothing_else(factory: str) -> None:
    vectors = gaussian(700)
    results = [
        Index.build(vectors, factory=factory, seed=s, train_size=400).search(vectors[:50], 5, params={"nprobe": 1})
        for s in (1, 1, 2)
    ]
    assert (results[0].scores == results[1].scores).all()
    assert (results[0].positions == results[1].positions).all()
    assert (results[0].positions != results[2].positions).any()


def test_layers_go_from_the_outside_to_the_storage() -> None:
    index = faiss.index_factory(16, "OPQ4,IVF8,PQ4,RFlat", faiss.METRIC_INNER_PRODUCT)
    names = [type(layer).__name__ for layer in factories.layers(faiss, index)]
    assert names == ["IndexRefineFlat", "IndexPreTransform", "IndexIVFPQ"]
    graph = faiss.index_factory(16, "HNSW8,PQ4", faiss.METRIC_INNER_PRODUCT)
    assert [type(layer).__name__ for layer in factories.layers(faiss, graph)] == ["IndexHNSWPQ", "IndexPQ"]


def test_faiss_messages_lose_the_signature_and_the_place_in_the_source() -> None:
    with pytest.raises(RuntimeError) as error:
        faiss.index_factory(16, "banana")
    assert factories.faiss_message(error.value) == "could not parse index string banana"
