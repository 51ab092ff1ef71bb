"""What `ance-fast train --tiny` reads: a folder of generated data with the published files' names and shapes, and a
checkpoint of two small layers."""

from __future__ import annotations

from pathlib import Path

from ance_fast.artifacts import MANIFEST, open_artifact, staged_artifact
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.training.recipe import Rehearsal

KIND = "rehearsal"
CHECKPOINT = "checkpoint"
"""The checkpoint's folder in that of the data."""


def rehearse(rehearsal: Rehearsal, folder: Path) -> None:
    """Write the data and the checkpoint that `rehearsal` names to `folder`; what is there already is kept.

    Raises `ConfigError` for a generator that is not known, `ArtifactError` where `folder` holds something else.
    """
    from ance_fast.cli.rehearsal.checkpoints import CHECKPOINTS
    from ance_fast.cli.rehearsal.files import FILES

    for value, generators in ((rehearsal.data, FILES), (rehearsal.checkpoint, CHECKPOINTS)):
        if value not in generators:
            raise ConfigError(f"[tiny] of the recipe: {value!r} is not generated; there are {', '.join(generators)}")
    made = {"data": rehearsal.data, "checkpoint": rehearsal.checkpoint}
    if folder.is_dir() and not any(folder.iterdir()):
        # An artifact appears whole, under a name that nothing has yet.
        raise ArtifactError(f"{folder}: is empty; a rehearsal makes its folder: remove it, or give another --data")
    if folder.exists():
        manifest = open_artifact(folder, KIND) if (folder / MANIFEST).is_file() else {}
        if any(manifest.get(key) != value for key, value in made.items()):
            raise ArtifactError(f"{folder}: holds something else than this rehearsal's data; give another --data")
        return
    with staged_artifact(folder, KIND, made) as staging:
        texts = FILES[rehearsal.data](staging)
        CHECKPOINTS[rehearsal.checkpoint](staging / CHECKPOINT, texts)
