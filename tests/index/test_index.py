from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.index import Index
from ance_fast.index import vectors as vectors_module

# factory, search parameters, least share of the true ten best found, agreement of scores with exact ones
KINDS = [
    ("Flat", {}, 1.0, 1e-5),
    ("HNSW32", {}, 0.95, 1e-5),
    ("IVF16,Flat", {}, 0.9, 1e-5),
    ("IVF16,Flat", {"nprobe": 16}, 1.0, 1e-5),
    ("SQ8", {}, 0.9, 0.05),
    ("IVF16,PQ16", {"nprobe": 16}, 0.6, 0.3),
    ("OPQ16,IVF16,PQ16", {"nprobe": 16}, 0.6, 0.3),
    ("HNSW16,RFlat", {"efSearch": 200}, 0.95, 1e-5),
    ("PQ16", {}, 0.6, 0.3),
]


def brute_force(corpus: np.ndarray, queries: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    scores[:, ~allowed] = -np.inf
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, positions, axis=1), positions


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    )


@pytest.mark.parametrize(("factory", "params", "least", "tolerance"), KINDS)
def test_each_kind_finds_what_brute_force_finds(
    factory: str, params: dict[str, int], least: float, tolerance: float, corpus: np.ndarray, queries: np.ndarray
) -> None:
    index = Index.build(corpus, factory=factory)
    hits = index.search(queries, 10, params=params)
    _, expected = brute_force(corpus, queries, np.ones(len(corpus), bool), 10)
    assert recall(hits.positions, expected) >= least
    true_scores = np.take_along_axis(queries @ corpus.T, hits.positions, axis=1)
    assert np.abs(hits.scores - true_scores).max() < tolerance
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert hits.scores.dtype == np.float32
    assert hits.positions.dtype == np.int64


@pytest.mark.parametrize(("factory", "params", "least", "tolerance"), KINDS)
def test_each_kind_honours_exclude_and_allow(
    factory: str, params: dict[str, int], least: float, tolerance: float, corpus: np.ndarray, queries: np.ndarray
) -> None:
    index = Index.build(corpus, factory=factory)
    allowed = np.zeros(len(corpus), bool)
    allowed[::5] = True
    excluded = np.zeros(len(corpus), bool)
    excluded[:600] = True
    names = np.array(index.ids.to_list(), object)
    for arguments, mask in [
        ({"allow": set(names[allowed])}, allowed),
        ({"exclude": [*names[excluded], "unknown"]}, ~excluded),
        ({"allow": names[allowed].tolist(), "exclude": names[excluded].tolist()}, allowed & ~excluded),
    ]:
        hits = index.search(queries, 10, params=params, **arguments)
        _, expected = brute_force(corpus, queries, mask, 10)
        assert mask[hits.positions[hits.positions >= 0]].all()
        assert recall(hits.positions, expected) >= least - 0.1


def test_flat_equals_brute_force_wherever_scores_differ(corpus: np.ndarray, queries: np.ndarray) -> None:
    hits = Index.build(corpus).search(queries, 30)
    scores, expected = brute_force(corpus, queries, np.ones(len(corpus), bool), 31)
    gaps = -np.diff(scores, axis=1)
    clear = (gaps > 1e-6) & (np.pad(gaps, ((0, 0), (1, 0)), constant_values=1.0)[:, :-1] > 1e-6)
    assert clear.mean() > 0.9
    assert (hits.positions == expected[:, :30])[clear].all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 120), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**16))
def test_flat_resolves_ties_everywhere_by_position(count: int, k: int, queries: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, query = generator.integers(-1, 2, (count, 2)), generator.integers(-1, 2, (queries, 2))
    mask = generator.random(count) < 0.8
    allow = [str(row) for row in np.flatnonzero(mask)]
    hits = Index.build(vectors.astype(np.float32)).search(query.astype(np.float32), k, allow=allow)
    for row in range(queries):
        expected = sorted(np.flatnonzero(mask).tolist(), key=lambda doc: (-int(vectors[doc] @ query[row]), doc))[:k]
        assert hits.positions[row].tolist() == expected + [-1] * (k - len(expected))


def test_cosine_is_the_inner_product_of_normalised_vectors_and_zero_vectors_score_zero() -> None:
    vectors = np.array([[2, 0], [0, 0], [5, 5], [-1, 0]], np.float32)
    index = Index.build(vectors, ids=["right", "zero", "up", "left"], metric="cosine")
    hits = index.search(np.array([[10.0, 0.0], [0.0, 0.0]]), 4)
    assert hits.ids == [["right", "up", "zero", "left"], ["right", "zero", "up", "left"]]
    assert hits.scores == pytest.approx(np.array([[1, 2**-0.5, 0, -1], [0, 0, 0, 0]]))


@pytest.mark.parametrize("factory", ["Flat", "HNSW32"])
def test_a_corpus_of_one_passage_is_searchable(factory: str) -> None:
    hits = Index.build(np.ones((1, 4)), ids=["only"], factory=factory).search(np.ones((2, 4)), 3)
    assert hits.ids == [["only"], ["only"]]
    assert hits.scores.tolist() == [[4, -np.inf, -np.inf]] * 2


@pytest.mark.parametrize("factory", ["Flat", "HNSW32"])
def test_an_empty_index_returns_padding_until_documents_are_added(factory: str) -> None:
    index = Index.build(np.empty((0, 4), np.float32), factory=factory)
    assert index.search(np.ones(4), 2).positions.tolist() == [[-1, -1]]
    index.add(np.ones((1, 4)), ["a"])
    assert index.search(np.ones(4), 2).ids == [["a"]]


def test_zero_one_and_many_queries_have_k_columns(corpus: np.ndarray, queries: np.ndarray) -> None:
    index = Index.build(corpus)
    assert index.search(queries[:0], 7).positions.shape == (0, 7)
    assert index.search(queries[:0], 7).ids == []
    assert index.search(queries[3], 7).ids == index.search(queries[3:4], 7).ids
    assert index.search(torch.from_numpy(queries), 7).scores.shape == (25, 7)


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF16,Flat"])
def test_k_beyond_the_corpus_is_padded(factory: str, corpus: np.ndarray) -> None:
    hits = Index.build(corpus[:100], factory=factory).search(corpus[:2], 130)
    assert hits.positions.shape == (2, 130)
    assert ((hits.positions == -1) == np.isneginf(hits.scores)).all()
    assert sorted(hits.positions[0][hits.positions[0] >= 0].tolist()) == sorted(int(name) for name in hits.ids[0])
    assert factory != "Flat" or [len(ids) for ids in hits.ids] == [100, 100]


@pytest.mark.parametrize("k", [0, -3, 2.0, "5", True, None])
def test_k_that_is_no_positive_whole_number_is_refused(k: object, corpus: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"k is .*; it must be a whole number of at least 1"):
        Index.build(corpus[:5]).search(corpus[0], k)  # type: ignore[arg-type]


def test_excluding_everything_leaves_padding(corpus: np.ndarray) -> None:
    index = Index.build(corpus[:5])
    assert index.search(corpus[0], 2, exclude=index.ids.to_list()).ids == [[]]
    assert index.search(corpus[0], 2, allow=[]).ids == [[]]


def test_wrong_filters_are_refused(corpus: np.ndarray) -> None:
    index = Index.build(corpus[:5])
    with pytest.raises(ConfigError, match="allow names the document 'x'"):
        index.search(corpus[0], 2, allow=["1", "x", "y"])
    with pytest.raises(ConfigError, match="exclude is the string '12'"):
        index.search(corpus[0], 2, exclude="12")


@pytest.mark.parametrize(
    ("factory", "params", "message"),
    [
        ("Flat", {"nprobe": 4}, "'nprobe' does not apply to Flat; it takes none"),
        ("IVF16,Flat", {"efSearch": 4}, "'efSearch' does not apply to IVF16,Flat; it takes nprobe"),
        ("HNSW32", {"ef": 4}, "'ef' does not apply to HNSW32; it takes efSearch"),
        ("IVF16,Flat", {"nprobe": 0}, "nprobe is 0"),
        ("HNSW32", {"efSearch": 1.5}, r"efSearch is 1\.5"),
    ],
)
def test_parameters_an_index_does_not_have_are_refused_also_for_no_queries(
    factory: str, params: dict[str, int], message: str, corpus: np.ndarray
) -> None:
    index = Index.build(corpus, factory=factory)
    for queries in (corpus[:1], corpus[:0]):
        with pytest.raises(ConfigError, match=message):
            index.search(queries, 3, params=params)


def test_parameters_change_how_much_is_searched(corpus: np.ndarray, queries: np.ndarray) -> None:
    index = Index.build(corpus, factory="IVF40,Flat")
    _, expected = brute_force(corpus, queries, np.ones(len(corpus), bool), 50)
    shares = [recall(index.search(queries, 50, params={"nprobe": n}).positions, expected) for n in (1, 4, 40)]
    assert shares[0] < shares[1] < shares[2] == 1.0


@pytest.mark.parametrize("factory", ["HNSW32", "IVF16,Flat"])
def test_a_narrow_filter_still_finds_its_documents(factory: str, corpus: np.ndarray, queries: np.ndarray) -> None:
    hits = Index.build(corpus, factory=factory).search(queries, 5, allow=["7", "500", "1100"])
    assert all(sorted(ids) == ["1100", "500", "7"] for ids in hits.ids)


def test_build_reads_slices_and_reports_progress(corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "BLOCK_ROWS", 500)
    seen: list[int] = []
    index = Index.build(corpus, progress=seen.append)
    assert seen == [500, 500, 200]
    assert (index.reconstruct(np.arange(1200)) == corpus).all()


def test_adding_equals_building_at_once(corpus: np.ndarray, queries: np.ndarray) -> None:
    names = [f"d{row}" for row in range(1200)]
    index = Index.build(corpus[:700], names[:700])
    index.add(corpus[700:].astype(np.float64), names[700:])
    assert index.search(queries, 9).ids == Index.build(corpus, names).search(queries, 9).ids
    assert len(index) == index.ntotal == 1200


def test_bad_additions_name_the_trouble_and_add_nothing(corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "BLOCK_ROWS", 2)
    index = Index.build(corpus[:3], ["a", "b", "c"])
    poisoned = corpus[:5].copy()
    poisoned[4, 0] = np.nan
    for embeddings, ids, message in [
        (corpus[:2], ["d", "b"], "'b' is already in the index"),
        (corpus[:2], ["d", "d"], "'d' is given twice"),
        (corpus[:2], ["d"], "1 ids for 2 vectors"),
        (corpus[:2, :8], ["d", "e"], "8 dimensions, the index has 32"),
        (poisoned, list("defgh"), r"document 'h' \(row 4\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            index.add(embeddings, ids)
    assert len(index) == 3
    assert index.search(corpus[0], 10).positions.max() == 2


def test_build_names_the_document_with_nan_and_search_the_query(corpus: np.ndarray) -> None:
    poisoned = corpus[:5].copy()
    poisoned[2] = np.inf
    for factory in ("Flat", "IVF2,Flat"):
        with pytest.raises(ConfigError, match=r"document 'c' \(row 2\) holds NaN or infinity"):
            Index.build(poisoned, list("abcde"), factory=factory)
    with pytest.raises(ConfigError, match="the vector of query 2"):
        Index.build(corpus).search(poisoned, 1)


def test_unknown_metrics_and_devices_are_refused(corpus: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="'l2'; choose one of ip, cosine"):
        Index.build(corpus, metric="l2")
    for device in ("tpu", "cuda:x", ""):
        with pytest.raises(ConfigError, match="unknown device"):
            Index.build(corpus, device=device)
    with pytest.raises(ConfigError, match="faiss-cpu sees no GPU; use device='cpu'"):
        Index.build(corpus, factory="IVF4,Flat", device="cuda:0")


def test_only_flat_gives_vectors_back_and_only_existing_rows(corpus: np.ndarray) -> None:
    assert (Index.build(corpus).reconstruct([3, 1]) == corpus[[3, 1]]).all()
    assert Index.build(corpus).reconstruct([]).shape == (0, 32)
    with pytest.raises(ConfigError, match="only Flat"):
        Index.build(corpus, factory="HNSW32").reconstruct([0])
    for rows in ([-1], [1200]):
        with pytest.raises(ConfigError, match="the index has 1200"):
            Index.build(corpus).reconstruct(rows)
