"""Directories of results: written whole or not at all, and checked when opened.

An artifact is a directory that holds files and a `manifest.json`. It is built in a hidden sibling directory, every file
is fsynced, the manifest (with the size and BLAKE2b checksum of each file) is written last, and the directory is renamed
into place. A reader therefore sees the old artifact, the new one, or none; never a part of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ance_fast.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, on failure remove it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield staging
        _fsync(staging)
        os.replace(staging, target)
        _fsync(target.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_file(path) as staging:
        staging.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def staged_artifact(path: str | os.PathLike[str], kind: str, manifest: dict[str, Any]) -> Iterator[Path]:
    """Build the artifact `path` of type `kind`.

    Yields the directory to write into. Entries may be added to `manifest` until the block ends. An artifact of the same
    kind at `path` is replaced; anything else there is refused, because it is not ours to delete.
    """
    target = Path(path)
    refuse_foreign(target, kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    staging.mkdir()
    try:
        yield staging
        seal(staging, kind, manifest)
        publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(directory: Path, kind: str, manifest: dict[str, Any]) -> None:
    """Fsync every file under `directory`, then write its manifest with their sizes and checksums."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        _fsync(file)
        files[file.relative_to(directory).as_posix()] = {"bytes": file.stat().st_size, "blake2b": checksum(file)}
    write_json(directory / MANIFEST, {**manifest, "kind": kind, "format_version": FORMAT_VERSION, "files": files})


def publish(staging: Path, target: Path) -> None:
    """Rename the sealed directory `staging` to `target`, replacing what is there."""
    if not target.exists():
        os.rename(staging, target)
    else:
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(target, old)
        os.rename(staging, target)
        shutil.rmtree(old, ignore_errors=True)
    _fsync(target.parent)


def refuse_foreign(target: Path, kind: str) -> None:
    """Raise `ArtifactError` if `target` holds something other than an artifact of this kind (or nothing)."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or _read_manifest(target).get("kind") != kind:
        raise ArtifactError(f"{target}: exists and is not {_a(kind)}; choose another path or remove it")


def open_artifact(path: str | os.PathLike[str], kind: str | None = None, *, verify: bool = True) -> dict[str, Any]:
    """Return the manifest of the artifact at `path`, of any kind if none is given.

    Raises `ArtifactError` if it is missing, of another kind or version, lacks a file, or (with `verify`) if a checksum
    differs. Without `verify` only names and sizes are compared, which costs nothing on large files.
    """
    root = Path(path)
    if not root.is_dir():
        raise ArtifactError(f"{root}: no such directory (expected {_a(kind)})")
    manifest = _read_manifest(root)
    if not manifest:
        raise ArtifactError(f"{root}: no {MANIFEST}, so this is not {_a(kind)} that was finished; build it again")
    if kind is not None and manifest.get("kind") != kind:
        raise ArtifactError(f"{root}: holds {_a(manifest.get('kind'))}, not {_a(kind)}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{root}: format version {manifest.get('format_version')}, this release reads {FORMAT_VERSION}; "
            "build it again"
        )
    for name, expected in manifest["files"].items():
        file = root / name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing, so the artifact is incomplete; build it again")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise ArtifactError(f"{file}: {size} bytes, the manifest says {expected['bytes']}; the file is damaged")
        if verify and checksum(file) != expected["blake2b"]:
            raise ArtifactError(f"{file}: checksum differs from the manifest; the file is damaged")
    return manifest


def checksum(path: Path) -> str:
    """BLAKE2b (128 bits) of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
