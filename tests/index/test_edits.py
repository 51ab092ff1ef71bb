"""Documents that are replaced and removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ance_fast.errors import ConfigError
from ance_fast.index import Index

EDITABLE = ["Flat", "IVF16,Flat", "IVF16,SQ8", "OPQ4,IVF16,PQ4"]


def everything(factory: str) -> dict[str, int]:
    return {} if factory == "Flat" else {"nprobe": 16}


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("factory", EDITABLE)
def test_an_edited_index_answers_as_one_built_from_what_is_left(
    factory: str, metric: str, corpus: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    names = np.array([f"d{row}" for row in range(1200)], object)
    removed = np.random.default_rng(0).choice(1200, 300, replace=False)
    renewed = np.setdiff1d(np.arange(0, 1200, 7), removed)
    index = Index.build(corpus, names, factory, metric)
    index.replace(-2 * corpus[renewed], names[renewed])
    index.remove(set(names[removed]))
    index.add(3 * corpus[:50], [f"n{row}" for row in range(50)])
    index.remove(["n7"])

    wanted = corpus.copy()
    wanted[renewed] *= -2
    wanted = np.concatenate([np.delete(wanted, removed, axis=0), np.delete(3 * corpus[:50], 7, axis=0)])
    left = [*np.delete(names, removed), *(f"n{row}" for row in range(50) if row != 7)]
    assert index.ids.to_list() == left
    index.save(tmp_path / "index")
    for edited in (index, Index.load(tmp_path / "index")):
        hits = edited.search(queries, 10, exclude=left[:100], params=everything(factory))
        assert hits.positions.min() >= 100
        if factory in ("Flat", "IVF16,Flat"):
            expected = Index.build(wanted, left, "Flat", metric).search(queries, 10, exclude=left[:100])
            assert hits.ids == expected.ids
            assert np.allclose(hits.scores, expected.scores, rtol=1e-5)
        else:
            hits = edited.search(wanted, 5, params=everything(factory))
            assert np.mean([name in found for name, found in zip(left, hits.ids, strict=True)]) > 0.5


def test_replaced_rows_keep_their_positions_and_removal_moves_the_rest_up(corpus: np.ndarray) -> None:
    index = Index.build(corpus[:5], list("abcde"))
    index.replace(corpus[5:7], ["d", "a"])
    assert (index.reconstruct(range(5)) == corpus[[6, 1, 2, 5, 4]]).all()
    index.remove(["b", "d"])
    assert index.ids.to_list() == list("ace")
    assert (index.reconstruct(range(3)) == corpus[[6, 2, 4]]).all()
    index.remove(["c", "a", "e"])
    assert index.search(corpus[0], 1).ids == [[]]
    index.add(corpus[:1], ["z"])
    assert index.search(corpus[0], 1).ids == [["z"]]


def test_a_loaded_index_is_edited_in_memory_and_its_files_stay(corpus: np.ndarray, tmp_path: Path) -> None:
    Index.build(corpus).save(tmp_path / "index")
    before = (tmp_path / "index" / "vectors.npy").read_bytes()
    index = Index.load(tmp_path / "index")
    index.replace(corpus[:1], ["9"])
    index.remove(["3"])
    index.save(tmp_path / "edited")
    assert (tmp_path / "index" / "vectors.npy").read_bytes() == before
    assert (Index.load(tmp_path / "edited").reconstruct([8, 3]) == corpus[[0, 4]]).all()


@pytest.mark.parametrize("factory", ["HNSW16", "SQ8", "PQ16", "IVF16,PQ16,RFlat"])
def test_kinds_that_cannot_be_edited_say_so_and_stay(factory: str, corpus: np.ndarray) -> None:
    index = Index.build(corpus, factory=factory)
    with pytest.raises(ConfigError, match=f"{factory} cannot remove documents .Flat and IVF on the CPU can"):
        index.remove(["3"])
    with pytest.raises(ConfigError, match=f"{factory} cannot replace documents"):
        index.replace(corpus[:1], ["3"])
    assert len(index.ids) == len(index) == 1200


def test_wrong_edits_name_the_trouble_and_change_nothing(corpus: np.ndarray) -> None:
    index = Index.build(corpus[:3], list("abc"))
    poisoned = corpus[:2].copy()
    poisoned[1] = np.nan
    for embeddings, ids, message in [
        (corpus[:2], ["a", "x"], "document 'x' is not in the index"),
        (corpus[:2], ["a", "a"], "'a' is given twice"),
        (corpus[:2], None, "needs the ids"),
        (corpus[:2, :4], ["a", "b"], "4 dimensions"),
        (poisoned, ["a", "b"], "document 'b'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            index.replace(embeddings, ids)
    with pytest.raises(ConfigError, match="'x' is not in the index"):
        index.remove(["a", "x"])
    with pytest.raises(ConfigError, match="is the string"):
        index.remove("abc")
    index.remove([])
    assert (index.reconstruct(range(3)) == corpus[:3]).all()
