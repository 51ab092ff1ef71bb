"""Search over chunks that returns documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data.chunked_documents import groups_by_id
from ance_fast.errors import ConfigError
from ance_fast.index import Index
from ance_fast.index.documents import part_of


def by_hand(scores: np.ndarray, names: list[str], hidden: set[int], k: int) -> dict[str, float]:
    """The first k documents of all chunks in the order of (-score, row)."""
    found: dict[str, float] = {}
    for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)):
        if row not in hidden and len(found) < k:
            found.setdefault(names[row].rpartition("#")[0] or names[row], float(scores[row]))
    return found


@settings(deadline=None, max_examples=60)
@given(
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    k=st.integers(1, 9),
    queries=st.integers(0, 3),
    shuffled=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_k_documents_come_by_their_best_chunk_whatever_the_number_of_chunks(
    chunks: list[int], k: int, queries: int, shuffled: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    names = [f"d{document}#{chunk}" for document, count in enumerate(chunks) for chunk in range(count)]
    if shuffled:
        names = [*random.permutation(names).tolist(), "alone"]
    vectors = random.integers(-2, 3, (len(names), 4)).astype(np.float32)
    asked = random.integers(-2, 3, (queries, 4)).astype(np.float32)
    index = Index.build(vectors, names, device="cpu")
    index.set_documents("#")
    hidden = [set(random.choice(len(names), random.integers(0, len(names)), replace=False)) for _ in range(queries)]
    lists = (
        np.cumsum([0, *map(len, hidden)]),
        np.array([row for rows in hidden for row in sorted(rows)], dtype=np.int64),
    )
    for exclude, excluded in ((None, [set()] * queries), (lists, hidden)):
        found = index.search_documents(asked, k, exclude_positions=exclude)
        assert found.positions.shape == (queries, k)
        run = found.to_run([str(query) for query in range(queries)])
        wanted = [by_hand(vectors @ query, names, rows, k) for query, rows in zip(asked, excluded, strict=True)]
        assert [list(one.items()) for one in run.values()] == [list(one.items()) for one in wanted]


def test_many_queries_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors, asked = (random.standard_normal((n, 4)).astype(np.float32) for n in (40, 11))
    index = Index.build(vectors, [f"d{row // 7}#{row % 7}" for row in range(40)], device="cpu")
    index.set_documents("#")
    whole = index.search_documents(asked, 4)
    monkeypatch.setattr("ance_fast.index.documents.BLOCK_QUERIES", 3)
    parts = index.search_documents(asked, 4)
    assert parts.ids == whole.ids
    np.testing.assert_array_equal(parts.scores, whole.scores)


def test_the_lists_of_some_queries_are_taken_out_in_their_order() -> None:
    offsets, values = part_of((np.array([0, 2, 2, 5]), np.arange(10, 15)), np.array([2, 1, 0]))
    assert (offsets.tolist(), values.tolist()) == ([0, 3, 3, 5], [12, 13, 14, 10, 11])


def test_an_index_remembers_that_its_rows_are_chunks_and_notices_that_they_change(tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = Index.build(vectors, ["a#0", "a#1", "b#0", "b#1"], device="cpu")
    index.set_documents("#")
    index.save(tmp_path / "chunks")
    index = Index.load(tmp_path / "chunks", device="cpu")
    assert index.document_separator == "#"
    assert index.search_documents(vectors[3], 3).ids == [["b", "a"]]
    index.remove(["b#1"])
    index.add(vectors[3:], ["c#7"])
    assert index.search_documents(vectors[3], 3).ids == [["c", "a", "b"]]
    merged = Index.merged([index])
    assert merged.search_documents(vectors[3], 1).ids == [["c"]]
    other = Index.build(vectors, ["x", "y", "z", "w"], device="cpu")
    with pytest.raises(ConfigError, match="index 0 is of document_separator #, index 1 of None"):
        Index.merged([index, other])


def test_an_index_of_whole_documents_is_searched_as_it_is_unless_it_is_told_of_others() -> None:
    vectors = np.eye(3, dtype=np.float32)
    index = Index.build(vectors, ["a-0", "a-1", "b"], device="cpu")
    assert index.search_documents(vectors[1], 2).ids == [["a-1", "a-0"]]
    assert index.search_documents(vectors[1], 2, documents=groups_by_id(index.ids.arrow, "-")).ids == [["a", "b"]]
    index.set_documents("#")
    with pytest.raises(ConfigError, match="document_separator='#': no passage id holds it, such as 'a-0'"):
        index.search_documents(vectors[1], 2)


def test_an_approximate_index_finds_k_documents_too() -> None:
    random = np.random.default_rng(0)
    vectors: Any = random.standard_normal((600, 8)).astype(np.float32)
    names = [f"d{row // 30}#{row % 30}" for row in range(600)]
    # One document owns the neighbourhood of the query.
    vectors[:30] = vectors[0] * 3
    index = Index.build(vectors, names, factory="IVF4,Flat", device="cpu")
    index.set_documents("#")
    found = index.search_documents(vectors[0], 5, params={"nprobe": 4})
    assert list(found.to_run(["q"])["q"]) == list(by_hand(vectors @ vectors[0], names, set(), 5))
