from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.index import Index


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 15), st.integers(0, 2**16))
def test_parts_merged_are_the_whole_with_ties_and_exclusions(sizes: list[int], k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = sum(sizes)
    vectors, queries = (generator.integers(-2, 3, (rows, 3)).astype(np.float32) for rows in (count, 3))
    names = [f"d{row}" for row in range(count)]
    ends = np.cumsum([0, *sizes])
    parts = [Index.build(vectors[a:b], names[a:b]) for a, b in itertools.pairwise(ends)]
    hidden = generator.random((3, count)) < 0.3
    lists = (np.cumsum([0, *hidden.sum(1)]), np.nonzero(hidden)[1])
    allow = [name for name in names if generator.random() < 0.8]
    merged, whole = (
        index.search(queries, k, exclude_positions=lists, allow=allow)
        for index in (Index.merged(parts), Index.build(vectors, names))
    )
    assert (merged.positions == whole.positions).all()
    assert (merged.scores == whole.scores).all()
    assert merged.ids == whole.ids


def test_different_kinds_of_index_are_merged_from_disk(corpus: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    names = [f"d{row}" for row in range(1200)]
    for number, (factory, start) in enumerate([("Flat", 0), ("IVF8,Flat", 400), ("HNSW32", 800)]):
        rows = slice(start, start + 400)
        Index.build(corpus[rows], names[rows], factory).save(tmp_path / str(number))
    merged = Index.merged([Index.load(tmp_path / str(number)) for number in range(3)])
    hits = merged.search(queries, 10, params={"nprobe": 8, "efSearch": 400})
    assert hits.ids == Index.build(corpus, names).search(queries, 10).ids
    assert merged.factory == "merged(Flat; IVF8,Flat; HNSW32)"
    with pytest.raises(ConfigError, match="'ef'"):
        merged.search(queries, 10, params={"ef": 3})


def test_merged_flat_parts_give_their_vectors_back(corpus: np.ndarray) -> None:
    parts = [Index.build(corpus[:5], list("abcde")), Index.build(corpus[5:7], list("xy"))]
    rows = [6, 0, 5, 4, 0]
    assert (Index.merged(parts).reconstruct(rows) == corpus[rows]).all()


def test_indexes_that_do_not_compare_are_not_merged(corpus: np.ndarray) -> None:
    one = Index.build(corpus[:4], list("abcd"), fingerprint="encoder-1")
    for other, message in [
        (Index.build(corpus[:1, :8], ["x"], fingerprint="encoder-1"), "of dim 32, index 1 of 8"),
        (Index.build(corpus[:1], ["x"], metric="cosine", fingerprint="encoder-1"), "of metric ip, index 1 of cosine"),
        (Index.build(corpus[:1], ["x"], fingerprint="encoder-2"), "encoder encoder-1, index 1 of encoder-2"),
        (Index.build(corpus[:1], ["x"]), "encoder encoder-1, index 1 of None"),
        (
            Index.build(corpus[:3], ["x", "c", "a"], fingerprint="encoder-1"),
            "'a' is in index 0 and in index 1 .* 1 oth",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            Index.merged([one, other])
    with pytest.raises(ConfigError, match="no indexes to merge"):
        Index.merged([])


def test_a_merged_index_is_not_changed_or_saved(corpus: np.ndarray, tmp_path: Path) -> None:
    merged = Index.merged([Index.build(corpus[:4], list("abcd"))])
    for change in (
        lambda: merged.add(corpus[:1], ["x"]),
        lambda: merged.replace(corpus[:1], ["a"]),
        lambda: merged.remove(["a"]),
        lambda: merged.save(tmp_path / "index"),
    ):
        with pytest.raises(ConfigError, match="view of its parts"):
            change()
    assert len(merged) == len(merged.ids) == 4
    assert not list(tmp_path.iterdir())
