"""Directories of results: written whole or not at all, and checked when opened.

An artifact is a directory that holds files and a `manifest.json`. It is built in a hidden sibling directory, every file
is fsynced, the manifest (with the size and BLAKE2b checksum of each file) is written last, and the directory is renamed
into place. A reader therefore sees the old artifact, the new one, or none; never a part of one.

Replacing takes two renames (old one away, new one in place). A process killed between them leaves `.NAME.XXXXXXXX.old`
beside the empty place: whoever opens or writes the artifact next puts the old one back first (`recover`).
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ance_fast.crash_points import crash_point
from ance_fast.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
STAGING_GRACE_SECONDS = 60.0

_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, point: str = "file") -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    `point` names the crash points around the rename.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield staging
        fsync(staging)
        crash_point(f"{point}.before_rename")
        os.replace(staging, target)
        crash_point(f"{point}.after_rename")
        fsync(target.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, *, point: str = "file") -> None:
    """Write `value` as JSON, atomically."""
    with atomic_file(path, point=point) as staging:
        staging.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def create_once(path: Path, data: bytes, *, durable: bool = True, point: str = "file") -> bool:
    """Make `path` with this content unless it exists; False if it does. Of several processes exactly one succeeds.

    The file appears with its content at once, because it is linked under its name when it is whole. Where the file
    system has no links it is created and then filled: a process killed in between leaves it empty. With `durable` it is
    on the device when this returns.
    """
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    crash_point(f"{point}.before")
    try:
        _write(staging, data, exclusive=False, durable=durable)
        os.link(staging, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            _write(path, data, exclusive=True, durable=durable)
        except FileExistsError:
            return False
    finally:
        staging.unlink(missing_ok=True)
    crash_point(f"{point}.after")
    if durable:
        fsync(path.parent)
    return True


@contextmanager
def staged_artifact(
    path: str | os.PathLike[str],
    kind: str,
    manifest: dict[str, Any],
    accept: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """Build the artifact `path` of type `kind`.

    Yields the directory to write into. Entries may be added to `manifest` until the block ends. An artifact of the same
    kind at `path` is replaced; anything else there is refused, because it is not ours to delete. accept: sees the whole
    artifact before it takes its place; what it raises keeps that from happening.
    """
    target = Path(path)
    refuse_foreign(target, kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep_staging(target)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    staging.mkdir()
    with _locked(staging):
        try:
            yield staging
            seal(staging, kind, manifest)
            if accept is not None:
                accept(staging)
            publish(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold a lock on `directory` that ends with the process; yields whether it could be had."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process has it, or the file system knows no locks
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _sweep_staging(target: Path) -> None:
    """Remove what processes that were killed while they built `target` have left."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        with suppress(OSError):
            # Young ones may be about to be locked.
            if time.time() - leftover.stat().st_mtime < STAGING_GRACE_SECONDS or not leftover.is_dir():
                continue
            with _locked(leftover) as dead:
                if dead:
                    shutil.rmtree(leftover, ignore_errors=True)


def sweep(folder: Path, of: str | None = None) -> None:
    """Put away what killed processes left directly in `folder`, to which no other process is about to write.

    of: only what they left of the artifact or file of that name.
    Artifacts that were being replaced are recovered; what was being built is removed, unless its builder still lives.
    """
    for path in folder.glob(".*"):
        left = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)", path.name)
        if left is None or (of is not None and left[1] != of):
            continue
        if left[2] == "old":
            recover(folder / left[1])
        elif path.is_dir():
            with _locked(path) as dead:
                if dead:
                    shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def seal(
    directory: Path, kind: str, manifest: dict[str, Any], known: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Fsync every file under `directory`, then write its manifest with their sizes and checksums.

    `known`: {name: {"bytes", "blake2b"}} of files that were summed and fsynced when they were written; they are not
    read again.
    """
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        name = file.relative_to(directory).as_posix()
        if known is not None and name in known:
            files[name] = {key: known[name][key] for key in ("bytes", "blake2b")}
        else:
            fsync(file)
            files[name] = {"bytes": file.stat().st_size, "blake2b": checksum(file)}
    whole = {**manifest, "kind": kind, "format_version": FORMAT_VERSION, "files": files}
    write_json(directory / MANIFEST, whole, point="manifest")


def publish(staging: Path, target: Path) -> None:
    """Rename the sealed directory `staging` to `target`, replacing an artifact of its kind.

    Raises `ArtifactError` if something else has come there meanwhile.
    """
    kind = _read_manifest(staging).get("kind")
    if kind is not None:
        refuse_foreign(target, kind)
    crash_point("publish.before")
    while True:
        old = None
        if target.exists():
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
            # FileNotFoundError: somebody else who replaces it was faster, so the place is free.
            with suppress(FileNotFoundError):
                os.rename(target, old)
        crash_point("publish.between")
        try:
            os.rename(staging, target)
            break
        except OSError as error:
            # Whoever opened the artifact between the two renames has put the old one back: move it away again.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not target.is_dir():
                recover(target)
                raise
    crash_point("publish.after")
    fsync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Finish what a process that was killed in `publish(..., target)` left undone.

    Puts the old artifact back if the new one did not arrive, removes it if it did. Does nothing where this process may
    not write.
    """
    olds = _moved_away(target)  # before looking at the target: then a target that exists is the newer one
    if not olds:
        return
    crash_point("recover.before")
    with suppress(OSError):
        if not target.exists():
            # The last one moved away is the one that was in use; renaming sets the time of its inode.
            os.rename(max(olds, key=lambda path: path.stat().st_ctime_ns), target)
            fsync(target.parent)
    crash_point("recover.after")
    if target.exists():
        for old in _moved_away(target):
            shutil.rmtree(old, ignore_errors=True)


def refuse_foreign(target: Path, kind: str) -> None:
    """Raise `ArtifactError` if `target` holds something other than an artifact of this kind (or nothing).

    Called before anything is written, so it first recovers what an interrupted replacement left.
    """
    recover(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        same = target.is_dir() and _read_manifest(target).get("kind") == kind
    except ArtifactError as error:
        raise ArtifactError(
            f"{target}: exists, and its {MANIFEST} is damaged; remove it or use another path"
        ) from error
    if not same:
        raise ArtifactError(f"{target}: exists and is not {_a(kind)}; choose another path or remove it")


def open_artifact(
    path: str | os.PathLike[str], kind: str | None = None, *, verify: bool = True, remedy: str = "build it again"
) -> dict[str, Any]:
    """Return the manifest of the artifact at `path`, of any kind if none is given.

    Raises `ArtifactError` if it is missing, of another kind or version, lacks a file, or (with `verify`) if a checksum
    differs. Without `verify` only names and sizes are compared, which costs nothing on large files. `remedy`: what the
    message tells to do.
    """
    root = Path(path)
    manifest = read_manifest(root, kind, remedy=remedy)
    for name, expected in manifest["files"].items():
        fault = damage(root / name, expected, verify=verify)
        if fault is not None:
            raise ArtifactError(f"{root / name}: {fault}; {remedy}")
    return manifest


def read_manifest(root: Path, kind: str | None = None, *, remedy: str = "build it again") -> dict[str, Any]:
    """The manifest of the artifact at `root`; its files are not looked at. Raises `ArtifactError`."""
    if not root.exists():
        recover(root)
    if not root.is_dir():
        raise ArtifactError(f"{root}: no such directory (expected {_a(kind)})")
    manifest = _read_manifest(root)
    if not manifest:
        raise ArtifactError(f"{root}: no {MANIFEST}, so this is not {_a(kind)} that was finished; {remedy}")
    if kind is not None and manifest.get("kind") != kind:
        raise ArtifactError(f"{root}: holds {_a(manifest.get('kind'))}, not {_a(kind)}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{root}: format version {manifest.get('format_version')}, this release reads {FORMAT_VERSION}; {remedy}"
        )
    return manifest


def damage(file: Path, expected: Mapping[str, Any], *, verify: bool = True) -> str | None:
    """What is wrong with a file that should have `expected["bytes"]` and `expected["blake2b"]`, None if nothing is.

    Without `verify` its content is not read.
    """
    try:
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            return "missing, so the artifact is incomplete"
        if size != expected["bytes"]:
            return f"{size} bytes, the manifest says {expected['bytes']}; the file is damaged"
        if verify and checksum(file) != expected["blake2b"]:
            return "checksum differs from the manifest; the file is damaged"
    except FileNotFoundError:
        return "missing, so the artifact is incomplete"
    return None


def checksum(path: Path) -> str:
    """BLAKE2b (128 bits) of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync(path: Path) -> None:
    """Wait until the file or directory `path` is on the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(root: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{root / MANIFEST}: not readable as JSON ({error}); build the artifact again") from error
    return manifest if isinstance(manifest, dict) else {}


def _a(kind: str | None) -> str:
    """ "a token store", "an index": for messages."""
    words = (kind or "artifact").replace("_", " ")
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _moved_away(target: Path) -> list[Path]:
    """What `publish` moved out of the way of `target` and did not remove."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.old")
    try:
        return [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]
    except OSError:
        return []


def _write(path: Path, data: bytes, *, exclusive: bool, durable: bool) -> None:
    with open(path, "xb" if exclusive else "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
