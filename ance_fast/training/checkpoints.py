"""Checkpoints that are whole or absent, and finding the one to resume from."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file, open_artifact, publish, read_manifest, seal
from ance_fast.errors import ArtifactError

logger = logging.getLogger(__name__)

KIND = "checkpoint"


def publish_checkpoint(staging: Path, target: Path, manifest: dict[str, Any], previous: Path | None = None) -> None:
    """Seal the files in `staging` and rename it to `target`.

    Files under `resident/` that the checkpoint `previous` has under the same name are the same files: they are linked,
    and not read again.
    """
    known = {}
    if previous is not None:
        files = read_manifest(previous, KIND)["files"]
        known = {name: entry for name, entry in files.items() if name.startswith("resident/")}
    seal(staging, KIND, manifest, known)
    publish(staging, target)


def newest_valid_checkpoint(folder: Path) -> Path:
    """The checkpoint with the highest step whose every checksum holds; damaged ones are passed over with a warning.

    Raises `ArtifactError` if there is none.
    """
    found = sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)
    for path in found:
        try:
            open_artifact(path, KIND)
        except ArtifactError as error:
            logger.warning("passing over a checkpoint: %s", error)
        else:
            return path
    raise ArtifactError(
        f"{folder}: no valid checkpoint to resume from ({len(found)} damaged); train into another folder"
    )


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints and what interrupted saves left behind."""
    for path in sorted(folder.glob("step-*"))[:-count]:
        shutil.rmtree(path)
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path)


def cut_log(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a JSON-lines log with the entries that `keep` accepts; a last line cut off by a crash is dropped."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if keep(entry):
            kept.append(line)
    with atomic_file(path) as staging:
        staging.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
