"""Exact search over vectors where they lie: mapped shards, arrays, several devices, a resident matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index import Index, ResidentMatrix, exact, mapped


class MappedShards:
    """Embeddings in `.npy` files of 500 rows; with a mean, that much was taken off what is stored."""

    fingerprint = "encoder-1"

    def __init__(self, folder: Path, vectors: np.ndarray, dtype: str = "float32", mean: np.ndarray | None = None):
        folder.mkdir()
        self.folder, self.mean, self.dim = folder, mean, vectors.shape[1]
        self.ids = [f"d{row}" for row in range(len(vectors))]
        stored = (vectors if mean is None else vectors - mean).astype(dtype)
        for number, start in enumerate(range(0, len(vectors), 500)):
            np.save(folder / f"{number}.npy", stored[start : start + 500])

    def stored(self) -> list[tuple[int, np.ndarray]]:
        files = sorted(self.folder.iterdir())
        return [(500 * number, np.load(file, mmap_mode="r")) for number, file in enumerate(files)]

    def __iter__(self) -> Iterator[np.ndarray]:
        for _, rows in self.stored():
            yield rows if self.mean is None else rows.astype(np.float32) + self.mean


@pytest.fixture
def shards(corpus: np.ndarray, tmp_path: Path) -> MappedShards:
    return MappedShards(tmp_path / "shards", corpus)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("centred", [False, True])
def test_mapped_shards_are_searched_as_the_matrix_they_stand_for(
    metric: str, dtype: str, centred: bool, corpus: np.ndarray, queries: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(exact, "TILE_ROWS", 128)
    vectors = corpus * np.linspace(1, 3, 1200)[:, None].astype(np.float32) + 5
    source = MappedShards(tmp_path / "shards", vectors, dtype, vectors.mean(0) if centred else None)
    stands_for = np.concatenate(list(source)).astype(np.float64)
    if metric == "cosine":
        stands_for /= np.linalg.norm(stands_for, axis=1, keepdims=True)
    used = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric == "cosine" else queries
    scores = used.astype(np.float64) @ stands_for.T
    scores[:, 7] = -np.inf
    best = np.sort(scores)[:, ::-1][:, :20]
    for index in (Index.over(source, metric=metric), Index.build(source, metric=metric)):
        index.save(tmp_path / "index")
        for one in (index, Index.load(tmp_path / "index", in_memory=False), Index.load(tmp_path / "index")):
            hits = one.search(queries, 20, exclude=["d7"])
            assert np.allclose(hits.scores, best, atol=3e-5)
            assert np.allclose(np.take_along_axis(scores, hits.positions, 1), best, atol=3e-5)
            assert np.allclose(one.reconstruct([1199, 3]), stands_for[[1199, 3]], rtol=1e-5)


def test_the_index_over_shards_links_their_files(shards: MappedShards, queries: np.ndarray, tmp_path: Path) -> None:
    index = Index.over(shards)
    index.save(tmp_path / "index")
    names = sorted(file.name for file in (tmp_path / "index").glob("*.npy"))
    assert names == ["vectors-00000.npy", "vectors-00001.npy", "vectors-00002.npy"]
    assert os.path.samefile(tmp_path / "index" / names[1], shards.folder / "1.npy")
    for file in shards.folder.iterdir():
        file.unlink()
    assert Index.load(tmp_path / "index").search(queries, 5).ids == index.search(queries, 5).ids


def test_a_file_that_took_the_name_of_a_mapped_one_is_not_linked(shards: MappedShards, tmp_path: Path) -> None:
    index = Index.over(shards)
    np.save(tmp_path / "other.npy", np.zeros((500, 32), np.float32))
    os.replace(tmp_path / "other.npy", shards.folder / "1.npy")
    index.save(tmp_path / "index")
    assert (Index.load(tmp_path / "index").reconstruct(range(1200)) == index.reconstruct(range(1200))).all()
    assert index.reconstruct([600]).any()


def test_without_hard_links_the_files_are_copied(
    shards: MappedShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    Index.over(shards).save(tmp_path / "index")
    copy = tmp_path / "index" / "vectors-00001.npy"
    assert copy.read_bytes() == (shards.folder / "1.npy").read_bytes()
    assert copy.stat().st_nlink == 1


def test_pages_of_shards_on_disk_are_given_back(
    shards: MappedShards, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[str, int, int]] = []
    original = mapped.MappedFile.forget

    def forget(file: mapped.MappedFile, start: int, stop: int) -> None:
        forgotten.append((file.path.name, start, stop))
        original(file, start, stop)

    monkeypatch.setattr(mapped.MappedFile, "forget", forget)
    monkeypatch.setattr(exact, "TILE_ROWS", 300)
    index = Index.over(shards)
    first = index.search(queries, 5).ids
    assert forgotten[:3] == [("0.npy", 0, 300), ("0.npy", 300, 500), ("1.npy", 0, 300)]
    assert index.search(queries, 5).ids == first


def test_an_index_over_files_stays_on_disk_when_it_is_loaded(
    shards: MappedShards, corpus: np.ndarray, tmp_path: Path
) -> None:
    Index.over(shards).save(tmp_path / "files")
    Index.build(corpus).save(tmp_path / "memory")

    def on_disk(name: str, **options: bool) -> bool:
        loaded = Index.load(tmp_path / name, device="cpu", **options)
        return all(block.on_disk for block in loaded._backend._blocks)

    assert on_disk("files")
    assert not on_disk("memory")
    assert not on_disk("files", in_memory=True)
    assert on_disk("memory", in_memory=False)


def test_vectors_on_disk_are_not_changed(shards: MappedShards, corpus: np.ndarray) -> None:
    index = Index.over(shards)
    with pytest.raises(ConfigError, match="stay on disk"):
        index.replace(corpus[:1], ["d3"])
    with pytest.raises(ConfigError, match="belong to the caller"):
        index.remove(["d3"])
    index.add(corpus[:1], ["new"])
    assert index.search(corpus[0], 2).ids == [["d0", "new"]]


def test_damaged_and_poisoned_shards_are_refused(corpus: np.ndarray, tmp_path: Path) -> None:
    poisoned = corpus.copy()
    poisoned[700, 3] = np.inf
    shards = MappedShards(tmp_path / "poisoned", poisoned)
    with pytest.raises(ConfigError, match=r"document 'd700' \(row 700\)"):
        Index.over(shards)
    shards.ids.pop()
    with pytest.raises(ConfigError, match="1200 vectors for 1199 ids"):
        Index.over(shards)
    Index.over(corpus).save(tmp_path / "index")
    Index.load(tmp_path / "index").save(tmp_path / "again")
    file = tmp_path / "again" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"vectors\.npy"):
        Index.load(tmp_path / "again", in_memory=False)


def test_an_index_over_an_array_shares_it(corpus: np.ndarray) -> None:
    mine = corpus.copy()
    index = Index.over(mine, metric="cosine")
    index.replace(-corpus[:1], ["0"])
    assert (mine[0] == -corpus[0]).all()
    mine[5] = 9 * corpus[0]
    assert index.search(corpus[0], 1).ids == [["5"]]
    mine.flags.writeable = False
    with pytest.raises(ConfigError, match="read-only"):
        Index.over(mine).replace(corpus[:1], ["0"])
    with pytest.raises(ConfigError, match="type float64"):
        Index.over(corpus.astype(np.float64))


def test_float16_is_kept_and_may_be_asked_for(corpus: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    half = corpus.astype(np.float16)
    for index in (Index.build(half), Index.build(corpus, dtype="float16")):
        index.save(tmp_path / "index")
        assert np.load(tmp_path / "index" / "vectors.npy").dtype == np.float16
        expected = Index.build(half.astype(np.float32)).search(queries, 9)
        hits = Index.load(tmp_path / "index").search(queries, 9)
        assert (hits.positions == expected.positions).all()
        assert np.allclose(hits.scores, expected.scores, rtol=1e-6)
    Index.build(half, dtype="float32").save(tmp_path / "index")
    assert np.load(tmp_path / "index" / "vectors.npy").dtype == np.float32
    with pytest.raises(ConfigError, match="'int8'; choose one of float32, float16"):
        Index.build(corpus, dtype="int8")


@pytest.mark.parametrize("count", [2, 3])
def test_several_devices_find_what_one_finds(count: int, corpus: np.ndarray, tmp_path: Path) -> None:
    vectors = np.round(4 * corpus)  # many ties, and across devices
    one, several = Index.build(vectors), Index.build(vectors, devices=["cpu"] * count)
    for index in (one, several):
        index.replace(vectors[:2], ["900", "400"])
        index.remove(["10", "800"])
        index.add(vectors[:30], [f"n{row}" for row in range(30)])
    hits = [index.search(vectors[::40], 300, exclude=["5"]) for index in (one, several)]
    assert (hits[0].positions == hits[1].positions).all()
    assert (hits[0].scores == hits[1].scores).all()
    several.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", devices=["cpu"] * count)
    assert (loaded.reconstruct(range(len(one))) == one.reconstruct(range(len(one)))).all()


def test_devices_that_make_no_sense_are_refused(corpus: np.ndarray) -> None:
    for arguments, message in [
        ({"devices": []}, "give a list of names"),
        ({"devices": "cpu"}, "give a list of names"),
        ({"devices": ["cpu"], "device": "cuda"}, "both given"),
        ({"devices": ["auto", "cpu"]}, "'auto' is one device"),
        ({"devices": ["cpu", "tpu"]}, "unknown device 'tpu'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Index.build(corpus, **arguments)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_written_into_a_resident_matrix_is_found_at_once(
    dtype: str, corpus: np.ndarray, tmp_path: Path
) -> None:
    resident = ResidentMatrix(1500, 32, "cpu", dtype)
    for start in range(0, 1200, 500):
        resident.write(start, corpus[start : start + 500])
    index = resident.index([f"d{row}" for row in range(1200)], fingerprint="encoder-1")
    assert len(index) == 1200
    assert index.search(corpus[700], 1).ids == [["d700"]]
    resident.matrix[3] = 9 * torch.from_numpy(corpus[700])
    resident.write(700, -corpus[700:701])
    assert index.search(corpus[700], 1).ids == [["d3"]]
    index.save(tmp_path / "index")
    assert Index.load(tmp_path / "index").search(corpus[700], 1).ids == [["d3"]]


def test_rows_that_do_not_fit_the_resident_matrix_are_refused(corpus: np.ndarray) -> None:
    resident = ResidentMatrix(10, 32, "cpu")
    for start, block in [(1, corpus[:1]), (0, corpus[:11]), (0, corpus[:2, :8]), (-1, corpus[:1])]:
        with pytest.raises(ConfigError, match="whose first 0 rows are written"):
            resident.write(start, block)
    for arguments in [(0, 4), (4, 0), (4, 4, "cpu", "int8")]:
        with pytest.raises(ConfigError):
            ResidentMatrix(*arguments)


def test_small_additions_share_blocks(corpus: np.ndarray) -> None:
    index = Index.build(corpus[:1])
    for row in range(1, 200):
        index.add(corpus[row : row + 1], [f"n{row}"])
    assert len(index._backend._blocks) == 2  # type: ignore[attr-defined]
    assert (index.reconstruct(range(200)) == corpus[:200]).all()
