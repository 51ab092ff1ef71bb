"""Documents hidden from all queries and from single ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.index import Index
from ance_fast.index.ids import IdTable
from ance_fast.index.selection import Selection, make_selection

FACTORIES = ["Flat", "HNSW32", "IVF16,Flat", "SQ8", "PQ16", "HNSW16,RFlat"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_each_query_misses_its_own_documents_and_finds_k_others(
    factory: str, corpus: np.ndarray, queries: np.ndarray
) -> None:
    index = Index.build(corpus, factory=factory)
    params = {"nprobe": 16} if factory.startswith("IVF") else {}
    full = index.search(queries, 40, params=params)
    hidden = [ids[number % 3 :: 3][:8] for number, ids in enumerate(full.ids)]
    found = index.search(queries, 10, exclude=[*hidden[:-1], ["unknown", *hidden[-1]]], params=params)
    expected = [[name for name in ids if name not in gone][:10] for ids, gone in zip(full.ids, hidden, strict=True)]
    assert not any(set(ids) & set(gone) for ids, gone in zip(found.ids, hidden, strict=True))
    shared = [len(set(a) & set(b)) for a, b in zip(found.ids, expected, strict=True)]
    assert sum(shared) >= 0.97 * 10 * len(queries)
    assert factory in ("HNSW32", "HNSW16,RFlat") or found.ids == expected

    lists = [[int(name) for name in gone] for gone in hidden]
    offsets = np.cumsum([0, *map(len, lists)])
    by_row = index.search(queries, 10, exclude_positions=(offsets, np.concatenate(lists)), params=params)
    assert (by_row.positions == found.positions).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**16))
def test_exact_search_with_exclusions_is_brute_force_over_the_rest(count: int, rows: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, queries = generator.integers(-2, 3, (count, 3)), generator.integers(-2, 3, (rows, 3))
    hidden, allowed = generator.random((rows, count)) < 0.4, generator.random(count) < 0.8
    offsets, positions = np.cumsum([0, *hidden.sum(1)]), np.nonzero(hidden)[1]
    hits = Index.build(vectors.astype(np.float32)).search(
        queries.astype(np.float32),
        k,
        exclude_positions=(offsets, positions),
        allow=[str(n) for n in allowed.nonzero()[0]],
    )
    for row in range(rows):
        left = np.flatnonzero(allowed & ~hidden[row]).tolist()
        expected = sorted(left, key=lambda doc: (-int(vectors[doc] @ queries[row]), doc))[:k]
        assert hits.positions[row].tolist() == expected + [-1] * (k - len(expected))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**16))
def test_parts_of_a_selection_hide_the_same_pairs(count: int, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    hidden = generator.random((rows, count)) < 0.5
    whole = Selection(count, None, (np.cumsum([0, *hidden.sum(1)]), np.nonzero(hidden)[1]))
    start, stop = sorted(generator.integers(0, rows + 1, 2))
    first, last = sorted(generator.integers(0, count + 1, 2))
    part = whole.queries(int(start), int(stop)).documents(int(first), int(last))
    everything = np.tile(np.arange(last - first), (stop - start, 1))
    assert ((part.without_exceptions(everything) < 0) == hidden[start:stop, first:last]).all()
    assert whole.most_excluded == hidden.sum(1).max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": [["a"]]}, "1 collections of ids for 2 queries"),
        ({"exclude": ["a", ["b"]]}, "mixes ids and collections"),
        ({"exclude": [1, 2]}, "exclude holds 1"),
        ({"exclude": {("a",), ("b",)}}, "set of collections"),
        ({"exclude": [["a"], []], "exclude_positions": ([0, 0, 0], [])}, "give one"),
        ({"exclude_positions": ([0, 1], [0])}, "offsets must be 3 numbers"),
        ({"exclude_positions": ([0, 2, 1], [0])}, "rise from 0 to 1"),
        ({"exclude_positions": ([0, 1, 1], [3])}, r"positions 3\.\.3 given, the index has 3"),
        ({"exclude_positions": ([0, 1, 1], [0.5])}, "float64"),
    ],
)
def test_exclusions_that_fit_no_query_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_selection(IdTable.from_ids(["a", "b", "c"], 3), 2, **arguments)


def test_a_query_whose_every_document_is_excluded_gets_padding(corpus: np.ndarray) -> None:
    index = Index.build(corpus[:3])
    assert index.search(corpus[:2], 2, exclude=[["0", "1", "2"], ["1"]]).ids == [
        [],
        index.search(corpus[1], 2, exclude=["1"]).ids[0],
    ]


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW32", "SQ8"])
def test_more_neighbours_than_a_gpu_would_return(factory: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    index = Index.build(vectors, factory=factory)
    params = {"Flat": {}, "SQ8": {}, "HNSW32": {"efSearch": 3000}}.get(factory, {"nprobe": 4})
    found = index.search(vectors[:3], 2500, exclude=[["0"], ["1"], ["2"]], params=params)
    assert (found.positions >= 0).mean() > (0.9 if factory == "HNSW32" else 0.9999)
    assert not (found.positions == np.arange(3)[:, None]).any()
