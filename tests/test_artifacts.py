"""Artifacts are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ance_fast import artifacts
from ance_fast.artifacts import (
    MANIFEST,
    atomic_file,
    checksum,
    create_once,
    open_artifact,
    publish,
    seal,
    staged_artifact,
    write_json,
)
from ance_fast.crash_points import arm
from ance_fast.errors import ArtifactError, ConfigError


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


def test_a_file_is_created_once_by_one_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_once(tmp_path / "a", b"first")
    assert not create_once(tmp_path / "a", b"second")

    def no_links(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert create_once(tmp_path / "b", b"first")
    assert not create_once(tmp_path / "b", b"second")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"first"
    monkeypatch.setattr(os, "link", lambda source, target: os.open(tmp_path / "none" / "x", os.O_RDONLY))
    with pytest.raises(OSError, match="none"):
        create_once(tmp_path / "c", b"first")
    assert left_behind(tmp_path) == ["a", "b"]


def test_sums_that_are_known_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(b"12345")
    (tmp_path / "small").write_bytes(b"1")
    known = {"big": {"bytes": 5, "blake2b": checksum(tmp_path / "big"), "more": 1}}
    read: list[str] = []
    monkeypatch.setattr(artifacts, "checksum", lambda path: read.append(path.name) or checksum(path))
    seal(tmp_path, "thing", {}, known=known)
    assert read == ["small"]
    assert open_artifact(tmp_path, "thing")["files"]["big"] == {"bytes": 5, "blake2b": known["big"]["blake2b"]}


CRASHING = """
import sys
from pathlib import Path
from ance_fast.artifacts import staged_artifact
with staged_artifact(sys.argv[1], "thing", {}) as folder:
    (folder / "file.bin").write_bytes(b"new")
"""


@pytest.mark.parametrize(
    ("point", "content"),
    [
        ("manifest.before_rename", b"hello"),
        ("manifest.after_rename", b"hello"),
        ("publish.before", b"hello"),
        ("publish.between", b"hello"),
        ("publish.after", b"new"),
    ],
)
def test_a_process_killed_while_it_replaces_an_artifact_leaves_one_that_opens(
    tmp_path: Path, point: str, content: bytes
) -> None:
    target = tmp_path / "a"
    with staged_artifact(target, "thing", {}) as folder:
        (folder / "file.bin").write_bytes(b"hello")
    environment = {**os.environ, "ANCE_FAST_CRASH_AT": point}
    killed = subprocess.run([sys.executable, "-c", CRASHING, str(target)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.exists() == (point != "publish.between")
    assert open_artifact(target, "thing")
    assert (target / "file.bin").read_bytes() == content
    make(target, b"newer")
    assert (target / "sub" / "file.bin").read_bytes() == b"newer"
    assert [name for name in left_behind(tmp_path) if name.endswith(".old")] == []


def test_what_a_killed_process_moved_away_is_not_mistaken_for_that_of_a_neighbour(tmp_path: Path) -> None:
    make(tmp_path / "a.b")
    os.rename(tmp_path / "a.b", tmp_path / ".a.b.0123abcd.old")
    with pytest.raises(ArtifactError, match="no such directory"):
        open_artifact(tmp_path / "a", "thing")
    assert open_artifact(tmp_path / "a.b", "thing")


def test_an_old_artifact_put_back_while_it_is_replaced_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", b"old")
    seen: list[bytes] = []

    def reader_between(point: str) -> None:
        if point == "publish.between" and not seen:
            open_artifact(tmp_path / "a", "thing")
            seen.append((tmp_path / "a" / "sub" / "file.bin").read_bytes())

    monkeypatch.setattr(artifacts, "crash_point", reader_between)
    make(tmp_path / "a", b"new")
    assert seen == [b"old"]
    assert (tmp_path / "a" / "sub" / "file.bin").read_bytes() == b"new"
    assert left_behind(tmp_path) == ["a"]


def test_an_artifact_that_cannot_be_put_in_place_leaves_the_old_one_there(tmp_path: Path) -> None:
    make(tmp_path / "a", b"old")
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "never built", tmp_path / "a")
    assert open_artifact(tmp_path / "a", "thing")
    assert left_behind(tmp_path) == ["a"]


def test_a_damaged_manifest_is_never_overwritten_unasked(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="its manifest.json is damaged; remove it or use another path"):
        make(tmp_path / "a")


@pytest.mark.parametrize("spec", ["nowhere", "publish.before:0", "publish.before:x", ":1"])
def test_a_crash_point_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="ANCE_FAST_CRASH_AT=.*: give name or name:n.*publish.between"):
        arm(spec)


def test_a_process_dies_when_it_reaches_its_crash_point_for_the_nth_time() -> None:
    code = (
        "from ance_fast.crash_points import crash_point\n"
        "for n in range(9): print(n, flush=True); crash_point('file.after_rename')"
    )
    for spec, last in (("file.after_rename:3", 2), ("file.after_rename", 0), ("publish.after", 8), ("", 8)):
        environment = {**os.environ, "ANCE_FAST_CRASH_AT": spec}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == (-signal.SIGKILL if last < 8 else 0)
        assert ran.stdout.split()[-1] == str(last)


def test_what_a_killed_build_left_is_removed_by_a_later_one(tmp_path):
    left, alive = tmp_path / ".made.0123abcd.tmp", tmp_path / ".made.89abcdef.tmp"
    other = tmp_path / ".made.by.0123abcd.tmp"
    for folder in (left, alive, other):
        folder.mkdir()
        (folder / "half").write_text("x")
        os.utime(folder, (0, 0))
    with artifacts._locked(alive) as locked:
        assert locked
        with artifacts.staged_artifact(tmp_path / "made", "thing", {}) as folder:
            (folder / "a").write_text("a")
    assert not left.exists()
    assert alive.exists()
    assert other.exists()


def test_a_folder_is_swept_of_what_the_dead_left_and_of_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "moved")
    os.rename(tmp_path / "moved", tmp_path / ".moved.0123abcd.old")
    (tmp_path / ".log.jsonl.0123abcd.tmp").write_text("half")
    for name in (".dead.0123abcd.tmp", ".alive.0123abcd.tmp", ".corpus.building"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    with artifacts._locked(tmp_path / ".alive.0123abcd.tmp"):
        artifacts.sweep(tmp_path)
    assert left_behind(tmp_path) == [".alive.0123abcd.tmp", ".corpus.building", "moved"]
    assert open_artifact(tmp_path / "moved", "thing")
    artifacts.sweep(tmp_path / "nowhere")


def test_what_has_come_to_the_place_meanwhile_is_not_replaced(tmp_path):
    with (
        pytest.raises(ArtifactError, match="exists and is not a thing"),
        artifacts.staged_artifact(tmp_path / "made", "thing", {}) as folder,
    ):
        (folder / "a").write_text("a")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "theirs").write_text("theirs")
    assert (tmp_path / "made" / "theirs").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_is_about_to_take_its_place_can_be_refused(tmp_path: Path) -> None:
    target = tmp_path / "made"
    make(target)

    def refuse(folder: Path) -> None:
        assert open_artifact(folder, "thing")["note"] == 2
        raise ConfigError("not this one")

    with pytest.raises(ConfigError), staged_artifact(target, "thing", {"note": 2}, refuse):
        pass
    assert open_artifact(target, "thing")["note"] == 1
    assert list(tmp_path.iterdir()) == [target]
