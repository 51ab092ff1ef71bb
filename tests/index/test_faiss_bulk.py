"""Many queries against inverted lists, list by list."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ance_fast.index import Index, faiss_bulk, faiss_index


@pytest.fixture
def bulk_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counted(faiss: Any, index: Any, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(queries))
        return original(faiss, index, queries, k, nprobe)

    monkeypatch.setattr(faiss_bulk, "BULK_WORK", 0)
    original = faiss_index.bulk_search
    monkeypatch.setattr(faiss_index, "bulk_search", counted)
    return calls


@pytest.mark.parametrize("nprobe", [1, 5, 40])
def test_a_search_list_by_list_finds_what_the_ordinary_one_finds(
    nprobe: int, corpus: np.ndarray, bulk_calls: list[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    index = Index.build(corpus, factory="IVF40,Flat")
    index.remove(["3", "700"])
    generator = np.random.default_rng(3)
    queries = corpus[generator.integers(0, 1200, 5000)] + 0.05 * generator.normal(size=(5000, 32)).astype(np.float32)
    own = (np.arange(5001), generator.integers(0, 1198, 5000))
    bulk = index.search(queries, 50, exclude_positions=own, params={"nprobe": nprobe})
    assert bulk_calls == [5000]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(faiss_bulk, "BULK_QUERIES", 10**9)
    ordinary = index.search(queries, 50, exclude_positions=own, params={"nprobe": nprobe})
    assert bulk_calls == [5000]
    assert ((bulk.positions < 0) == (ordinary.positions < 0)).all()
    assert (nprobe > 1) or (bulk.positions < 0).any()
    found = bulk.positions >= 0
    assert np.allclose(bulk.scores[found], ordinary.scores[found], rtol=1e-5, atol=1e-6)
    assert (bulk.positions == ordinary.positions).mean() > 0.999


def test_what_others_print_during_a_search_list_by_list_is_shown(
    corpus: np.ndarray, bulk_calls: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import faiss

    knn = faiss.knn

    def beside(*arguments: Any, **options: Any) -> Any:
        thread = threading.Thread(target=print, args=("another thread",))
        thread.start()
        thread.join()
        return knn(*arguments, **options)

    monkeypatch.setattr(faiss, "knn", beside)
    Index.build(corpus, factory="IVF4,Flat").search(np.repeat(corpus[:410], 10, axis=0), 2, params={"nprobe": 4})
    assert bulk_calls == [4100]
    assert capsys.readouterr().out == 4 * "another thread\n"


@pytest.mark.parametrize(
    ("factory", "arguments"), [("IVF8,SQ8", {}), ("HNSW8", {}), ("IVF8,Flat", {"allow": ["1", "2"]})]
)
def test_what_the_list_by_list_search_cannot_do_is_searched_as_ever(
    factory: str, arguments: dict, corpus: np.ndarray, bulk_calls: list[int]
) -> None:
    queries = np.repeat(corpus[:410], 10, axis=0)
    found = Index.build(corpus, factory=factory).search(queries, 2, **arguments)
    assert not bulk_calls
    assert (found.positions[::10] == found.positions[9::10]).all()


def test_short_lists_few_queries_and_many_neighbours_are_searched_as_ever() -> None:
    index = SimpleNamespace(ntotal=60_000, nlist=64, d=384)
    assert faiss_bulk.prefers_bulk(index, 8192, 100)
    assert not faiss_bulk.prefers_bulk(index, 4000, 100)
    assert not faiss_bulk.prefers_bulk(index, 8192, 1000)
    index.d, index.ntotal = 64, 20_000
    assert not faiss_bulk.prefers_bulk(index, 8192, 100)
