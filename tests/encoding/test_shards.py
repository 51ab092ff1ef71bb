"""Reading embeddings: what is there, and what is said about what is not."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ance_fast.artifacts import MANIFEST, seal
from ance_fast.data import TokenStore
from ance_fast.encoding import EmbeddingShards
from ance_fast.encoding.shard_job import ShardJob
from ance_fast.encoding.shards import IDS, KIND, write_ids
from ance_fast.errors import ArtifactError


@pytest.fixture
def made(word_store: Callable[..., TokenStore], tmp_path: Path) -> Callable[..., tuple[EmbeddingShards, np.ndarray]]:
    """`made(mean=None)`: 25 random embeddings of 4 values in shards of 10, and what was written."""

    def make(mean: np.ndarray | None = None) -> tuple[EmbeddingShards, np.ndarray]:
        rows = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
        options: dict = {"dtype": "float16", "centre": lambda: mean} if mean is not None else {}
        settings = {"fingerprint": "model-a"}
        with ShardJob.enter(tmp_path / "out", settings, word_store(25), dim=4, shard_rows=10, **options) as job:
            for shard in job.claim():
                with job.writer(shard) as out:
                    out.write(rows[shard.start : shard.stop])
            return job.finish(), rows

    return make


def test_rows_are_read_in_any_order_and_blocks_are_mapped(made: Callable) -> None:
    shards, rows = made()
    wanted = np.random.default_rng(1).integers(0, 25, 60)
    np.testing.assert_array_equal(shards.read(wanted), rows[wanted])
    np.testing.assert_array_equal(shards.read(), rows)
    assert shards.read([]).shape == (0, 4)
    assert [type(block) for block in shards] == [np.memmap] * 3
    assert [(start, type(block), block.shape) for start, block in shards.stored()][2] == (20, np.memmap, (5, 4))
    assert (len(shards), shards.dim, shards.dtype, shards.mean) == (25, 4, np.float32, None)
    assert repr(shards).endswith("25 x 4, float32)")
    for bad in ([25], [-1]):
        with pytest.raises(IndexError, match=r"rows -?\d+\.\.-?\d+ of 25 embeddings"):
            shards.read(bad)


def test_a_subtracted_mean_is_added_where_rows_are_read_and_not_where_they_are_stored(made: Callable) -> None:
    mean = np.array([1, -2, 300, 0], dtype=np.float32)
    shards, rows = made(mean)
    np.testing.assert_array_equal(shards.mean, mean)
    stored = np.concatenate([block for _, block in shards.stored()])
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, (rows - mean).astype(np.float16))
    restored = stored.astype(np.float32) + mean
    np.testing.assert_array_equal(shards.read(), restored)
    np.testing.assert_array_equal(np.concatenate(list(shards)), restored)
    np.testing.assert_array_equal(shards.read([24, 0, 11]), restored[[24, 0, 11]])


def test_ids_stay_in_arrow_memory(tmp_path: Path) -> None:
    count = 200_000
    write_ids(tmp_path / IDS, pa.chunked_array([pa.array(map(str, range(count)), pa.large_string())]))
    np.save(tmp_path / "embeddings-00000.npy", np.zeros((count, 1), dtype=np.float16))
    shards = [{"file": "embeddings-00000.npy", "start": 0, "rows": count, "content": ""}]
    seal(tmp_path, KIND, {"rows": count, "dim": 1, "dtype": "float16", "shards": shards, "fingerprint": "a"})
    tracemalloc.start()
    opened = EmbeddingShards.open(tmp_path, verify=False)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 100_000
    assert opened.ids.arrow.num_chunks == 4
    assert (opened.ids[199_999], opened.ids[-1], opened.ids[3:5]) == ("199999", "199999", ["3", "4"])
    assert opened.ids.positions(["17", "none", "150000"]).tolist() == [17, -1, 150_000]


def test_embeddings_of_release_0_1_0_are_read(tmp_path: Path) -> None:
    write_ids(tmp_path / IDS, pa.chunked_array([pa.array(["a", "b", "c"], pa.large_string())]))
    names = ["embeddings-00000.npy", "embeddings-00001.npy"]
    np.save(tmp_path / names[0], np.zeros((2, 3), dtype=np.float32))
    np.save(tmp_path / names[1], np.ones((1, 3), dtype=np.float32))
    old = {"rows": 3, "dim": 3, "dtype": "float32", "shard_rows": 2, "shards": names, "fingerprint": "a"}
    seal(tmp_path, KIND, old)
    np.testing.assert_array_equal(EmbeddingShards.open(tmp_path).read([2, 0])[:, 0], [1, 0])


def test_no_embeddings_at_all_read_as_none(tmp_path: Path) -> None:
    write_ids(tmp_path / IDS, pa.chunked_array([], pa.large_string()))
    seal(tmp_path, KIND, {"rows": 0, "dim": 3, "dtype": "float16", "shards": [], "fingerprint": "a"})
    shards = EmbeddingShards.open(tmp_path)
    assert (shards.read().shape, shards.read().dtype, list(shards), list(shards.ids)) == ((0, 3), np.float16, [], [])


def test_damage_is_named_with_what_to_do(made: Callable) -> None:
    shards, _ = made(np.ones(4, dtype=np.float32))
    root = shards.path
    with pytest.raises(
        ArtifactError, match="embeddings of encoder model-a, this one is other; encode the corpus again"
    ):
        EmbeddingShards.open(root, fingerprint="other")
    manifest = json.loads((root / MANIFEST).read_text())

    def resealed(change: Callable[[], object], **entries: object) -> None:
        """Damage that checksums cannot show, because the manifest was made from it."""
        change()
        seal(root, KIND, {**manifest, **entries})

    def nothing() -> None:
        pass

    shard = root / "embeddings-00001.npy"
    good = shard.read_bytes()
    resealed(lambda: np.save(shard, np.zeros((10, 5), dtype=np.float16)))
    with pytest.raises(
        ArtifactError, match=r"00001\.npy: float16 \[10, 5\], the manifest says float16 \[10, 4\]; encode"
    ):
        EmbeddingShards.open(root).read()
    resealed(lambda: shard.write_bytes(b"not an array"))
    with pytest.raises(ArtifactError, match=r"00001\.npy: not readable as \.npy .*; encode the corpus again"):
        EmbeddingShards.open(root).stored()
    resealed(lambda: shard.write_bytes(good), rows=24)
    with pytest.raises(ArtifactError, match="25 ids, 24 rows in shards, 24 in the manifest"):
        EmbeddingShards.open(root)
    resealed(nothing, dtype="nonsense")
    with pytest.raises(ArtifactError, match="its manifest lacks"):
        EmbeddingShards.open(root)
    resealed(nothing, shards=[{"file": "embeddings-00000.npy", "start": 5}])
    with pytest.raises(ArtifactError, match="its manifest lacks an order of the shards' first rows"):
        EmbeddingShards.open(root)
    resealed(lambda: np.save(root / "mean.npy", np.zeros(4)))
    with pytest.raises(ArtifactError, match=r"mean\.npy: float64 \[4\], expected float32 \[4\]"):
        EmbeddingShards.open(root)
    resealed(lambda: (root / "mean.npy").write_bytes(b"x"))
    with pytest.raises(ArtifactError, match=r"mean\.npy: not readable"):
        EmbeddingShards.open(root)
    resealed(lambda: (root / IDS).write_bytes(b"x"))
    with pytest.raises(ArtifactError, match=r"ids\.arrow: not a column of ids"):
        EmbeddingShards.open(root)
