from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from ance_fast.data.record_file import write_records
from ance_fast.data.tokenize import Tokens
from ance_fast.encoding import EmbeddingShards
from ance_fast.encoding.ance_embeddings import (
    find_ance_embeddings,
    import_ance_embeddings,
    read_ance_embeddings,
    write_ance_embeddings,
)
from ance_fast.errors import ArtifactError, ConfigError, DataError
from ance_fast.index import Index

DIM = 4


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def write(folder: Path, made: np.ndarray, ranks: int, batch: int, form: str, *, part: str = "passage_5_") -> None:
    """The files of `made` [records, chunks, dim] as the original's loop over batches leaves them."""
    for rank in range(ranks):
        mine = np.arange(rank, len(made), ranks)
        rows: list[np.ndarray] = []
        records: list[np.ndarray] = []
        for start in range(0, len(mine), batch):
            here = mine[start : start + batch]
            for chunk in range(made.shape[1]):
                rows.append(made[here, chunk])
                records.append(here)
        for kind, array in (("emb", np.concatenate(rows)), ("embid", np.concatenate(records))):
            file = folder / f"{part}_{kind}_p__data_obj_{rank}.{form}"
            if form == "npy":
                np.save(file, array)
            else:
                file.write_bytes(pickle.dumps(array, protocol=4))


@pytest.mark.parametrize("form", ["npy", "pb"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_are_put_together_in_the_order_of_records(tmp_path: Path, form: str, ranks: int) -> None:
    made = vectors(10)
    write(tmp_path, made[:, None], ranks, 2, form)
    found, records = read_ance_embeddings(tmp_path)
    np.testing.assert_array_equal(found, made)
    np.testing.assert_array_equal(records, np.arange(10))
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f")
    np.testing.assert_array_equal(shards.read(), made)
    assert list(shards.ids) == [str(row) for row in range(10)]
    assert EmbeddingShards.open(tmp_path / "out", fingerprint="f").dim == DIM


def test_chunks_of_a_document_follow_one_another(tmp_path: Path) -> None:
    made = vectors(7 * 3).reshape(7, 3, DIM)
    write(tmp_path, made, 2, 2, "npy")
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f", prefix="D")
    np.testing.assert_array_equal(shards.read(), made.reshape(-1, DIM))
    assert list(shards.ids)[2:5] == ["D0#2", "D1#0", "D1#1"]
    write_ance_embeddings(shards, tmp_path / "back", ranks=3, step=5)
    again, records = read_ance_embeddings(tmp_path / "back", step=5)
    np.testing.assert_array_equal(again, made.reshape(-1, DIM))
    np.testing.assert_array_equal(records, np.repeat(np.arange(7), 3))


@pytest.mark.parametrize("form", ["npy", "pb"])
def test_what_is_written_is_what_the_original_writes(tmp_path: Path, form: str) -> None:
    write(tmp_path, vectors(10)[:, None], 1, 4, "npy")
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f")
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    write_ance_embeddings(shards, tmp_path / "mine", part="dev_query", step=7, ranks=3, form=form)
    write(tmp_path / "theirs", vectors(10)[:, None], 3, 4, form, part="dev_query_7_")
    names = sorted(file.name for file in (tmp_path / "theirs").iterdir())
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == names
    for name in names:
        mine, theirs = ((tmp_path / side / name).read_bytes() for side in ("mine", "theirs"))
        if form == "npy":
            assert mine == theirs, name
        else:
            found, expected = pickle.loads(mine), pickle.loads(theirs)
            assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())
            assert b"numpy._core" not in mine


def globals_of(pickled: bytes) -> list[tuple[object, object]]:
    """What a pickle of protocol 4 imports, by the strings before each import."""
    strings: list[object] = []
    found = []
    for code, argument, _ in pickletools.genops(pickled):
        if code.name == "STACK_GLOBAL":
            found.append((strings[-2], strings[-1]))
        elif code.name == "SHORT_BINUNICODE":
            strings.append(argument)
    return found


def test_a_pickle_names_what_numpy_1_has(tmp_path: Path) -> None:
    write(tmp_path, vectors(3)[:, None], 1, 4, "npy")
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f")
    write_ance_embeddings(shards, tmp_path / "mine", form="pb")
    for kind in ("emb", "embid"):
        pickled = (tmp_path / "mine" / f"passage_0__{kind}_p__data_obj_0.pb").read_bytes()
        known = [("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")]
        assert globals_of(pickled) == known


def cache(folder: Path, ids: list[int]) -> Path:
    """Preprocessed data of these passages, in the order of its records, and of two dev queries."""
    folder.mkdir()
    for name, count in (("passages", len(ids)), ("dev-query", 2)):
        write_records(folder / name, 2, 0, [Tokens(np.full(count, 7), np.arange(count + 1), 0)])
    (folder / "pid2offset.pickle").write_bytes(pickle.dumps({one: record for record, one in enumerate(ids)}))
    (folder / "qid2offset.pickle").write_bytes(pickle.dumps({9: 0, 8: 1}))
    return folder


@pytest.mark.parametrize("chunks", [1, 2])
def test_every_id_keeps_its_vector_on_the_way_to_its_record_and_back(tmp_path: Path, chunks: int) -> None:
    made = vectors(10 * chunks).reshape(10, chunks, DIM)
    sorted_ids, theirs = cache(tmp_path / "sorted", list(range(20, 30))), cache(tmp_path / "c", [*range(29, 19, -1)])
    write(tmp_path, made, 1, 4, "npy")
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f", cache=sorted_ids, prefix="D")
    write_ance_embeddings(shards, tmp_path / "back", ranks=3, cache=theirs, prefix="D")
    found, records = read_ance_embeddings(tmp_path / "back")
    np.testing.assert_array_equal(found, made[::-1].reshape(-1, DIM))
    np.testing.assert_array_equal(records, np.repeat(np.arange(10), chunks))
    again = import_ance_embeddings(tmp_path / "back", tmp_path / "again", fingerprint="f", cache=theirs, prefix="D")
    rows = shards.ids.positions(list(again.ids))
    np.testing.assert_array_equal(again.read(), shards.read(rows))


def test_records_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path, vectors(3)[:, None], 1, 4, "npy")
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f", cache=cache(tmp_path / "c", [4, 5, 6]))
    back = tmp_path / "back"
    with pytest.raises(ConfigError, match="prefix='D': ids are looked for in a cache"):
        write_ance_embeddings(shards, back, prefix="D")
    with pytest.raises(DataError, match=r"passages: no record of '4' \(3 such embeddings\)"):
        write_ance_embeddings(shards, back, cache=tmp_path / "c", prefix="D")
    with pytest.raises(DataError, match=r"passages: 1 records have no embedding, the first is '9'"):
        write_ance_embeddings(shards, back, cache=cache(tmp_path / "d", [4, 9, 5, 6]))
    with pytest.raises(DataError, match=r"dev-query: no record of '4'"):
        write_ance_embeddings(shards, back, part="dev_query", cache=tmp_path / "c")
    assert not back.exists()
    write_ance_embeddings(shards, back, form="npy", step=3)
    with pytest.raises(ArtifactError, match=r"obj_0\.npy: other passage embeddings of step 3 are there"):
        write_ance_embeddings(shards, back, form="pb", step=3)
    write_ance_embeddings(shards, back, form="npy", step=3)
    write(tmp_path, vectors(2)[:, None], 1, 4, "npy", part="dev_query_5_")
    asked = {"fingerprint": "f", "part": "dev_query", "prefix": "D"}
    assert list(import_ance_embeddings(tmp_path, tmp_path / "q", **asked).ids) == ["0", "1"]  # type: ignore[arg-type]


def test_an_index_of_them_finds_what_the_vectors_say(tmp_path: Path) -> None:
    made = vectors(50)
    write(tmp_path, made[:, None], 2, 8, "npy")
    shards = import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f")
    queries = vectors(5, seed=1)
    found = Index.build(shards).search(queries, 3)
    np.testing.assert_array_equal(found.positions, np.argsort(-(queries @ made.T), axis=1, kind="stable")[:, :3])


def test_the_newest_step_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    for step, count in ((5, 3), (20, 4)):
        write(tmp_path, vectors(count)[:, None], 1, 8, "npy", part=f"passage_{step}_")
    assert len(read_ance_embeddings(tmp_path)[0]) == 4
    assert len(read_ance_embeddings(tmp_path, step=5)[0]) == 3
    with pytest.raises(ArtifactError, match="no passage embeddings of step 6 .*; steps there: 5, 20"):
        read_ance_embeddings(tmp_path, step=6)
    with pytest.raises(ArtifactError, match="no query embeddings"):
        find_ance_embeddings(tmp_path, "query")
    with pytest.raises(ConfigError, match="choose passage, query, dev_query"):
        find_ance_embeddings(tmp_path, "document")


def test_missing_ranks_and_records_are_named(tmp_path: Path) -> None:
    write(tmp_path, vectors(10)[:, None], 3, 2, "npy")
    last = tmp_path / "passage_5__emb_p__data_obj_2.npy"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(ArtifactError, match="passage_5__emb_p__data_obj_2: missing"):
        read_ance_embeddings(tmp_path)
    (tmp_path / "passage_5__embid_p__data_obj_2.npy").unlink()
    with pytest.raises(DataError, match="of 10 records, record 2 has 0 rows in 2 files"):
        read_ance_embeddings(tmp_path)
    last.write_bytes(kept)
    np.save(tmp_path / "passage_5__embid_p__data_obj_2.npy", np.array([2, 5, 5]))
    with pytest.raises(DataError, match="of 10 records, record 5 has 2 rows"):
        read_ance_embeddings(tmp_path)
    np.save(tmp_path / "passage_5__embid_p__data_obj_2.npy", np.array([2, 5]))
    with pytest.raises(DataError, match=r"embid_p__data_obj_2\.npy: int64 \[2\], expected integers \[3\]"):
        read_ance_embeddings(tmp_path)
    np.save(tmp_path / "passage_5__embid_p__data_obj_2.npy", np.array([2, 5, 10**12]))
    with pytest.raises(DataError, match="record 8 has 0 rows"):
        read_ance_embeddings(tmp_path)


def test_vectors_that_are_none_are_refused(tmp_path: Path) -> None:
    made = vectors(10)
    made[4, 1] = np.nan
    write(tmp_path, made[:, None], 2, 2, "npy")
    with pytest.raises(DataError, match=r"data_obj_0\.npy: row 2 holds NaN or infinity"):
        import_ance_embeddings(tmp_path, tmp_path / "out", fingerprint="f")
    assert not (tmp_path / "out").exists()
    np.save(tmp_path / "passage_5__emb_p__data_obj_0.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"data_obj_0\.npy: not readable as \.npy"):
        read_ance_embeddings(tmp_path)
    np.save(tmp_path / "passage_5__emb_p__data_obj_0.npy", np.zeros((5, 3), np.float32))
    with pytest.raises(DataError, match=r"data_obj_1\.npy: 4 dimensions, .*data_obj_0\.npy has 3"):
        read_ance_embeddings(tmp_path)
