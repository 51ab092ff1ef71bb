"""Artifacts are whole or absent."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from ance_fast.artifacts import MANIFEST, atomic_file, open_artifact, staged_artifact, write_json
from ance_fast.errors import ArtifactError


def make(path: Path, content: bytes = b"hello", kind: str = "thing") -> None:
    with staged_artifact(path, kind, {"note": 1}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file.bin").write_bytes(content)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_opens_with_its_manifest_and_is_replaced_whole(tmp_path: Path) -> None:
    make(tmp_path / "a")
    assert open_artifact(tmp_path / "a", "thing")["note"] == 1
    make(tmp_path / "a", b"new")
    assert (tmp_path / "a" / "sub" / "file.bin").read_bytes() == b"new"
    assert left_behind(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_artifact_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "a")
    with pytest.raises(type(error)), staged_artifact(tmp_path / "a", "thing", {}) as folder:
        (folder / "part").write_bytes(b"half")
        raise error
    assert left_behind(tmp_path) == ["a"]
    assert (tmp_path / "a" / "sub" / "file.bin").read_bytes() == b"hello"


def test_what_is_not_an_artifact_of_the_kind_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    make(tmp_path / "index", kind="index")
    for name in ("photos", "index"):
        with pytest.raises(ArtifactError, match="exists and is not a thing"):
            make(tmp_path / name)
    assert (tmp_path / "photos" / "cat.png").exists()


def test_every_kind_of_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        open_artifact(tmp_path / "a", "thing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=f"no {MANIFEST}"):
        open_artifact(tmp_path / "empty", "thing")
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="holds a thing, not an index"):
        open_artifact(tmp_path / "a", "index")
    file = tmp_path / "a" / "sub" / "file.bin"
    file.write_bytes(b"jello")
    with pytest.raises(ArtifactError, match=r"file\.bin: checksum"):
        open_artifact(tmp_path / "a", "thing")
    assert open_artifact(tmp_path / "a", "thing", verify=False)
    file.write_bytes(b"longer than before")
    with pytest.raises(ArtifactError, match="18 bytes, the manifest says 5"):
        open_artifact(tmp_path / "a", "thing", verify=False)
    file.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_artifact(tmp_path / "a", "thing")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    (tmp_path / "a" / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ArtifactError, match="format version 99"):
        open_artifact(tmp_path / "a", "thing")
    (tmp_path / "a" / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not readable as JSON"):
        open_artifact(tmp_path / "a", "thing")


def test_a_file_is_replaced_atomically_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "x.json") as staging:
        staging.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert left_behind(tmp_path) == ["x.json"]
