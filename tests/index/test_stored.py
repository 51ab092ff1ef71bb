"""Saving and loading an index."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ance_fast.artifacts import seal
from ance_fast.data.text_record import text_record
from ance_fast.data.text_rules import released_tokenizer
from ance_fast.errors import ArtifactError
from ance_fast.index import Index

FACTORIES = ["Flat", "HNSW16", "IVF16,Flat", "OPQ4,IVF16,PQ4"]


@pytest.fixture
def saved(corpus: np.ndarray, tmp_path: Path) -> Path:
    Index.build(corpus, fingerprint="encoder-1").save(tmp_path / "index")
    return tmp_path / "index"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reseal(path: Path, **changes: object) -> None:
    """Change manifest entries and make the checksums fit what is there now."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").unlink()
    seal(path, "index", {**manifest, **changes})


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_a_loaded_index_answers_as_the_saved_one(
    factory: str, metric: str, corpus: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    names = [f"doc-{row}" for row in range(len(corpus))]
    index = Index.build(3 * corpus, names, factory, metric, fingerprint="encoder-1")
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", fingerprint="encoder-1")
    first, second = index.search(queries, 8, exclude=["doc-4"]), loaded.search(queries, 8, exclude=["doc-4"])
    assert first.ids == second.ids
    assert np.allclose(first.scores, second.scores, rtol=1e-6)
    assert (loaded.factory, loaded.metric, loaded.dim, loaded.fingerprint) == (factory, metric, 32, "encoder-1")
    loaded.add(9 * corpus[:1], ["new"])
    assert "new" in loaded.search(corpus[:1], 20).ids[0]


def test_the_manifest_says_what_the_index_is(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    expected = {
        "factory": "Flat", "metric": "ip", "dim": 32, "count": 1200, "dtype": "float32", "fingerprint": "encoder-1",
        "backend": "exact", "kind": "index",
    }  # fmt: skip
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["versions"]["numpy"] == np.__version__
    assert set(manifest["files"]) == {"vectors.npy", "ids.arrow"}


def test_an_index_knows_the_text_rules_of_its_documents(minilm: Path, corpus: np.ndarray, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(minilm)
    ruled = released_tokenizer(plain, "dpr,lower_case=false")
    for made, other, wrong, remedy in (
        (plain, ruled, "preset 'dpr,lower_case=false'", "leave --text-preset out"),
        (ruled, plain, "the checkpoint's own rules", "say --text-preset dpr,lower_case=false"),
    ):
        index = Index.build(corpus)
        index.text_record = text_record(made)
        index.save(tmp_path / "index")
        assert Index.load(tmp_path / "index", tokenizer=made).text_record == text_record(made)
        with pytest.raises(ArtifactError, match=f"this encoder has .*{wrong}.*{remedy}"):
            Index.load(tmp_path / "index", tokenizer=other)
    Index.build(corpus).save(tmp_path / "index")  # as earlier releases, which recorded nothing
    assert Index.load(tmp_path / "index", tokenizer=plain).text_record is None


def test_an_empty_index_survives(tmp_path: Path) -> None:
    Index.build(np.empty((0, 3), np.float32)).save(tmp_path / "index")
    assert Index.load(tmp_path / "index").search(np.ones(3), 2).ids == [[]]


def test_a_flat_index_saved_with_faiss_loads_without(
    saved: Path, corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Index.load(saved).search(corpus[:5], 4).ids
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert Index.load(saved).backend == "exact"
    assert Index.load(saved).search(corpus[:5], 4).ids == expected


def test_saving_again_replaces_the_index_while_the_old_one_stays_usable(saved: Path, corpus: np.ndarray) -> None:
    old = Index.load(saved)
    Index.build(corpus[:10]).save(saved)
    assert len(Index.load(saved)) == 10
    assert old.search(corpus[1100], 1).ids == [["1100"]]


def test_another_encoder_is_refused_and_both_are_named(saved: Path, corpus: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="built by encoder encoder-1, you are using encoder encoder-2"):
        Index.load(saved, fingerprint="encoder-2")
    Index.build(corpus).save(tmp_path / "unknown")
    with pytest.raises(ArtifactError, match="records no encoder"):
        Index.load(tmp_path / "unknown", fingerprint="encoder-2")
    assert len(Index.load(tmp_path / "unknown")) == 1200


@pytest.mark.parametrize("name", ["vectors.npy", "ids.arrow"])
def test_missing_shortened_and_altered_files_are_refused_by_name(name: str, saved: Path) -> None:
    file = saved / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{name}: checksum differs"):
        Index.load(saved)
    file.write_bytes(content[:-10])
    with pytest.raises(ArtifactError, match=f"{name}: .* the file is damaged"):
        Index.load(saved)
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing"):
        Index.load(saved)


def test_directories_that_are_no_complete_index_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        Index.load(tmp_path / "nowhere")
    half = tmp_path / "half"
    shutil.copytree(saved, half)
    (half / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="so this is not"):
        Index.load(half)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"count": 5}, "1200 vectors, 1200 ids and a count of 5"), ({"dim": 31}, r"expected float32 \[count, 31\]")],
)
def test_files_that_contradict_the_manifest_are_refused(changes: dict[str, int], message: str, saved: Path) -> None:
    reseal(saved, **changes)
    with pytest.raises(ArtifactError, match=message):
        Index.load(saved)


def test_vectors_that_are_no_array_and_never_a_pickle_are_refused(saved: Path) -> None:
    np.save(saved / "vectors.npy", np.array([{}], object), allow_pickle=True)
    reseal(saved)
    with pytest.raises(ArtifactError, match=r"vectors\.npy: not readable"):
        Index.load(saved)


def test_a_faiss_file_that_faiss_cannot_read_is_refused(corpus: np.ndarray, tmp_path: Path) -> None:
    Index.build(corpus, factory="HNSW16").save(tmp_path / "index")
    (tmp_path / "index" / "index.faiss").write_bytes(b"not an index")
    reseal(tmp_path / "index")
    with pytest.raises(ArtifactError, match=r"index\.faiss: FAISS .* cannot read it"):
        Index.load(tmp_path / "index")


def test_saving_does_not_overwrite_what_is_not_an_index(corpus: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists and is not an? index"):
        Index.build(corpus).save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_a_write_that_fails_says_where_and_leaves_the_former_index_whole(
    factory: str, saved: Path, corpus: np.ndarray
) -> None:
    index = Index.build(corpus, factory=factory)
    with largest_file(50_000), pytest.raises(ArtifactError, match=f"{saved}: the index was not saved .*disk full"):
        index.save(saved)
    assert [entry.name for entry in saved.parent.iterdir()] == ["index"]
    assert Index.load(saved).fingerprint == "encoder-1"
