"""`mine_hard_negatives` beside sentence-transformers' own, the same model through both."""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives as theirs

import ance_fast
from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.mining import mine_hard_negatives

DOCUMENTS, DIM = 500, 24
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


class Table(torch.nn.Module):
    """A model whose text "17" is row 17 of a table: as good as any, and cosines lie far apart."""

    device = torch.device("cpu")
    similarity_fn_name = "cosine"

    def __init__(self, seed: int = 0, rows: int = DOCUMENTS + 200) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)))

    def encode(self, texts: list[str], normalize_embeddings: bool = False, **_: Any) -> np.ndarray:
        vectors = self.table[[int(text) for text in texts]].detach()
        return (torch.nn.functional.normalize(vectors, dim=-1) if normalize_embeddings else vectors).numpy()

    encode_query = encode_document = encode

    @staticmethod
    def similarity(queries: Any, documents: Any) -> torch.Tensor:
        return torch.as_tensor(queries) @ torch.as_tensor(documents).T

    @staticmethod
    def similarity_pairwise(queries: Any, documents: Any) -> torch.Tensor:
        return (torch.as_tensor(queries) * torch.as_tensor(documents)).sum(dim=1)


class Judge:
    """A cross-encoder: any function of the two texts."""

    @staticmethod
    def predict(pairs: list[tuple[str, str]], convert_to_tensor: bool = False, **_: Any) -> Any:
        scores = np.array([np.sin(int(query) * 7.3 + int(text) * 1.7) for query, text in pairs], dtype=np.float32)
        return torch.from_numpy(scores) if convert_to_tensor else scores


def make_pairs(seed: int, queries: int) -> tuple[Dataset, list[str]]:
    """Queries with one to four positives among 500 documents, some pairs twice, and the documents."""
    draw = random.Random(seed)
    pairs = []
    for query in range(queries):
        own = draw.sample(range(DOCUMENTS), draw.choice([1, 1, 1, 2, 4]))
        pairs += [(str(DOCUMENTS + query), str(document)) for document in own]
    pairs += draw.sample(pairs, 3)
    draw.shuffle(pairs)
    return Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]}), [
        str(document) for document in range(DOCUMENTS)
    ]


def assert_same(ours: Dataset, reference: Dataset) -> None:
    """The same columns and rows in the same order; scores to the last bits of float32."""
    assert ours.column_names == reference.column_names
    assert len(ours) == len(reference)
    for name in reference.column_names:
        left, right = list(ours[name]), list(reference[name])
        if name in ("score", "scores"):
            for mine, other in zip(left, right, strict=True):
                assert mine == pytest.approx(other, abs=1e-6)
        else:
            assert left == right, name


limits = st.fixed_dictionaries(
    {},
    optional={
        "range_min": st.integers(0, 6),
        "max_score": st.sampled_from([0.15, 0.3, 0.6]),
        "min_score": st.sampled_from([-0.2, 0.1, 0.25]),
        "absolute_margin": st.sampled_from([0.0, 0.1, -0.4]),
        "relative_margin": st.sampled_from([0.05, 0.5, -1.0]),
    },
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    options=limits,
    window=st.one_of(st.none(), st.integers(0, 60)),
    count=st.integers(1, 5),
    output_format=st.sampled_from(["triplet", "n-tuple", "labeled-pair", "labeled-list"]),
    output_scores=st.booleans(),
    judged=st.booleans(),
    whole_corpus=st.booleans(),
    include_positives=st.booleans(),
)
def test_the_rows_are_those_of_sentence_transformers(
    seed: int,
    options: dict[str, Any],
    window: int | None,
    count: int,
    output_format: str,
    output_scores: bool,
    judged: bool,
    whole_corpus: bool,
    include_positives: bool,
) -> None:
    pairs, corpus = make_pairs(seed, 40)
    model = Table(seed)
    arguments: dict[str, Any] = {
        **options,
        "range_max": None if window is None else options.get("range_min", 0) + count + window,
        "num_negatives": count,
        "output_format": "n-tuple" if include_positives else output_format,
        "output_scores": output_scores,
        "include_positives": include_positives,
        "cross_encoder": Judge() if judged else None,
        "corpus": corpus if whole_corpus else None,
        "verbose": False,
    }
    try:
        reference = theirs(pairs, model, **arguments)
    except ZeroDivisionError:
        # Its statistics divide by the candidates that are left: here the margins leave none.
        arguments |= {"output_format": "triplet", "include_positives": False}
        assert len(mine_hard_negatives(pairs, model, **arguments)) == 0
    else:
        assert_same(mine_hard_negatives(pairs, model, **arguments), reference)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), options=limits, count=st.integers(1, 4))
def test_random_draws_come_from_the_candidates_of_sentence_transformers_and_are_as_many(
    seed: int, options: dict[str, Any], count: int
) -> None:
    pairs, corpus = make_pairs(seed, 30)
    model = Table(seed)
    arguments = {**options, "corpus": corpus, "range_max": options.get("range_min", 0) + 25, "verbose": False}
    window = arguments["range_max"] - options.get("range_min", 0)
    try:
        candidates = theirs(pairs, model, **arguments, num_negatives=window)
    except ZeroDivisionError:
        candidates = []  # its statistics divide by the candidates that are left: here none is
    passing: dict[tuple[str, str], set[str]] = {}
    for row in candidates:
        passing.setdefault((row["anchor"], row["positive"]), set()).add(row["negative"])
    drawn = mine_hard_negatives(pairs, model, **arguments, num_negatives=count, sampling_strategy="random", seed=seed)
    found: dict[tuple[str, str], list[str]] = {}
    for row in drawn:
        found.setdefault((row["anchor"], row["positive"]), []).append(row["negative"])
    assert {pair: min(count, len(some)) for pair, some in passing.items()} == {
        pair: len(some) for pair, some in found.items()
    }
    for pair, some in found.items():
        assert len(set(some)) == len(some)
        assert set(some) <= passing[pair]


def test_draws_are_uniform_repeatable_and_another_for_each_seed() -> None:
    model = Table()
    pairs = {"query": [str(DOCUMENTS)], "text": ["0"]}
    arguments: dict[str, Any] = {"corpus": [str(d) for d in range(DOCUMENTS)], "range_max": 20, "verbose": False}
    arguments |= {"num_negatives": 5, "sampling_strategy": "random"}
    counts: Counter[str] = Counter()
    for seed in range(400):
        first = list(mine_hard_negatives(pairs, model, **arguments, seed=seed)["negative"])
        counts.update(first)
    assert first == list(mine_hard_negatives(pairs, model, **arguments, seed=seed)["negative"])
    # 400 draws of 5 out of 20: 100 each, with a standard deviation of 8.7.
    assert len(counts) == 20
    assert all(60 < count < 140 for count in counts.values())


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    options=limits,
    count=st.integers(1, 6),
    sampling=st.sampled_from(["top", "random"]),
)
def test_a_positive_is_never_a_negative(seed: int, options: dict[str, Any], count: int, sampling: str) -> None:
    pairs, _ = make_pairs(seed, 60)
    positives: dict[str, set[str]] = {}
    for row in pairs:
        positives.setdefault(row["anchor"], set()).add(row["positive"])
    mined = mine_hard_negatives(
        pairs, Table(seed), **options, num_negatives=count, sampling_strategy=sampling, verbose=False
    )
    for row in mined:
        assert row["negative"] not in positives[row["anchor"]]


@pytest.fixture(scope="module")
def real(minilm: Path, wiki: Path) -> tuple[Dataset, list[str], SentenceTransformer]:
    dataset = ance_fast.read_beir(wiki, split="train")
    texts = {document.id: document.full_text for document in dataset.corpus}
    rows = [
        (dataset.queries[query], texts[document])
        for query, judged in list(dataset.qrels.items())[:60]
        for document, grade in judged.items()
        if grade > 0
    ]
    model = SentenceTransformer(str(minilm), device="cpu")
    model.max_seq_length = 32
    pairs = Dataset.from_dict({"anchor": [q for q, _ in rows], "positive": [p for _, p in rows]})
    return pairs, list(texts.values()), model


def test_real_text_through_a_sentence_transformer_gives_the_same_rows(
    real: tuple[Dataset, list[str], SentenceTransformer],
) -> None:
    pairs, corpus, model = real
    model.train()
    arguments: dict[str, Any] = {"corpus": corpus, "relative_margin": 0.05, "num_negatives": 4, "verbose": False}
    arguments |= {"query_prompt": "query: ", "corpus_prompt": "passage: ", "output_scores": True}
    ours = mine_hard_negatives(pairs, model, **arguments)
    assert model.training
    assert len(ours) > 100
    assert_same(ours, theirs(pairs, model, **arguments))


def test_our_encoder_mines_what_the_same_checkpoint_mines_in_sentence_transformers(
    real: tuple[Dataset, list[str], SentenceTransformer], minilm: Path
) -> None:
    pairs, corpus, model = real
    encoder = ance_fast.Encoder.load(str(minilm), device="cpu", max_query_length=32, max_document_length=32)
    arguments: dict[str, Any] = {"corpus": corpus, "num_negatives": 2, "verbose": False, "output_format": "n-tuple"}
    assert_same(mine_hard_negatives(pairs, encoder, **arguments), theirs(pairs, model, **arguments))


def test_a_cache_never_gives_the_negatives_of_other_weights(tmp_path: Path) -> None:
    pairs, corpus = make_pairs(1, 20)
    arguments: dict[str, Any] = {"corpus": corpus, "verbose": False, "cache_folder": tmp_path}
    model = Table(1)
    first = mine_hard_negatives(pairs, model, **arguments)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 2
    assert_same(mine_hard_negatives(pairs, model, **arguments), first)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    with torch.no_grad():
        model.table.copy_(Table(2).table)
    later = mine_hard_negatives(pairs, model, **arguments)
    assert_same(later, mine_hard_negatives(pairs, Table(2), corpus=corpus, verbose=False))
    assert list(later["negative"]) != list(first["negative"])
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert_same(mine_hard_negatives(pairs, model, **arguments), later)


def test_a_cache_is_refused_for_a_model_whose_weights_cannot_be_seen(tmp_path: Path) -> None:
    class Opaque:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.eye(len(texts), 8, dtype=np.float32)

    pairs = {"a": ["x", "y"], "b": ["1", "2"]}
    assert len(mine_hard_negatives(pairs, Opaque(), num_negatives=1)) == 2
    with pytest.raises(ConfigError, match="could be stale"):
        mine_hard_negatives(pairs, Opaque(), num_negatives=1, cache_folder=tmp_path)
    with pytest.raises(ConfigError, match="takes no prompt"):
        mine_hard_negatives(pairs, Opaque(), num_negatives=1, query_prompt="q: ")


def test_inner_products_rank_by_length_too() -> None:
    class Lengths:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[float(text), 1.0] for text in texts], dtype=np.float32)

    pairs = {"query": ["1"], "text": ["2"]}
    arguments: dict[str, Any] = {"corpus": ["1", "50"], "num_negatives": 1, "verbose": False}
    assert list(mine_hard_negatives(pairs, Lengths(), **arguments)["negative"]) == ["1"]
    assert list(mine_hard_negatives(pairs, Lengths(), **arguments, metric="ip")["negative"]) == ["50"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_negatives": 0}, "must be at least 1"),
        ({"range_min": -1}, "must not be negative"),
        ({"range_min": 5, "range_max": 5}, "smaller than range_max"),
        ({"range_max": 2}, "only 2 candidates"),
        ({"output_format": "pairs"}, "choose triplet"),
        ({"sampling_strategy": "best"}, "choose top or random"),
        ({"metric": "l2"}, "choose cosine or ip"),
        ({"anchor_column_name": "question"}, "no column 'question'"),
        ({"use_multi_process": True}, "start_multi_process_pool"),
        ({"corpus": [None]}, "corpus 0 is NoneType"),
    ],
)
def test_what_cannot_be_met_is_refused(arguments: dict[str, Any], message: str) -> None:
    pairs, _ = make_pairs(0, 10)
    with pytest.raises(ConfigError, match=message):
        mine_hard_negatives(pairs, Table(), **arguments)


def test_a_model_that_compares_by_distance_is_refused() -> None:
    model = Table()
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ConfigError, match="euclidean"):
        mine_hard_negatives(make_pairs(0, 10)[0], model)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="is empty"):
        mine_hard_negatives({"a": [], "b": []}, Table())
    with pytest.raises(ConfigError, match="needs anchors and positives"):
        mine_hard_negatives({"a": ["1"]}, Table())


def test_old_names_still_work_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    pairs, _ = make_pairs(0, 20)
    old = mine_hard_negatives(pairs, Table(), as_triplets=False, margin=0.1)
    assert "negative_1" in old.column_names
    assert_same(old, mine_hard_negatives(pairs, Table(), output_format="n-tuple", absolute_margin=0.1))
    assert "old name" in caplog.text


def test_what_was_found_and_filtered_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ance_fast"):
        mine_hard_negatives(make_pairs(0, 20)[0], Table(), max_score=0.2)
    assert "max_score took" in caplog.text
    assert "for 20 queries" in caplog.text


def test_without_datasets_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"ance_fast\[datasets\]"):
        mine_hard_negatives({"a": ["1"], "b": ["2"]}, Table())
