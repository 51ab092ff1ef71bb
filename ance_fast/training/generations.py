"""A generation: the negatives that are in use, where they came from, and the weights that found them."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ance_fast.artifacts import open_artifact, staged_artifact
from ance_fast.crash_points import crash_point
from ance_fast.errors import ArtifactError
from ance_fast.index import Index
from ance_fast.training.negatives import NegativeTable

KIND = "generation"


@dataclass(frozen=True)
class Generation:
    """What the trainer draws negatives from between two refreshes; it is replaced as a whole, never changed.

    fingerprint: of the encoder whose weights made it (`Encoder.fingerprint`). table: the candidates, with the step they
    were mined at. index: what they were found in, None for a generation that was read back or that needed no index.
    """

    fingerprint: str
    table: NegativeTable
    index: Index | None = None

    @property
    def number(self) -> int:
        """0 for the start negatives, one more at each refresh."""
        return self.table.generation

    @property
    def step(self) -> int:
        """The optimizer step before which it was made."""
        return self.table.step

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured when it was made."""
        return self.table.metrics

    def path_in(self, folder: Path) -> Path:
        """Where `publish` writes it."""
        return folder / f"step-{self.step:08d}-{self.table.source}"

    def ages(self, passages: np.ndarray, step: int) -> np.ndarray:
        """Steps from the weights that made it to `step`, for each of `passages`: int64; empty where nothing ages."""
        if not self.table.ages:
            return np.zeros(0, dtype=np.int64)
        return np.full(passages.shape, step - self.step, dtype=np.int64)

    def identity(self) -> tuple[int, int, str, str]:
        """Number, step, fingerprint and BLAKE2b of the candidates: equal exactly for the same negatives."""
        digest = hashlib.blake2b(self.table.candidates.tobytes(), digest_size=16)
        return self.number, self.step, self.fingerprint, digest.hexdigest()

    def publish(self, folder: Path) -> Path:
        """Write it into `folder`, whole or not at all; returns where. The index is not written."""
        path = self.path_in(folder)
        manifest = {
            "number": self.number,
            "step": self.step,
            "source": self.table.source,
            "fingerprint": self.fingerprint,
            "metrics": self.metrics,
        }
        crash_point("generation.before")
        with staged_artifact(path, KIND, manifest) as staging:
            self.table.save(staging / "negatives")
        crash_point("generation.after")
        return path

    @classmethod
    def load(cls, path: Path, *, mapped: bool = False) -> Generation:
        """Read what `publish` wrote (`ArtifactError` if it is not whole).

        `mapped`: only when it was just written, for checksums are not looked at; the table is read as it is used.
        """
        manifest = open_artifact(path, KIND, verify=not mapped)
        return cls(manifest["fingerprint"], NegativeTable.load(path / "negatives", mapped=mapped))


def newest_before(folder: Path, step: int) -> Generation:
    """The generation in use when a checkpoint at `step` was written. Raises `ArtifactError` if it is missing.

    A refresh at `step` itself comes after the checkpoint, so that one is made again.
    """
    found = [path for path in sorted(folder.glob("step-*")) if _step_of(path) < max(step, 1)]
    if not found:
        raise ArtifactError(f"{folder}: the negatives used before step {step} are missing; train into another folder")
    return Generation.load(found[-1])


def drop_from(folder: Path, step: int) -> None:
    """Remove the generations of `step` and later, made by weights that a resumed run no longer has."""
    for path in folder.glob("step-*"):
        if _step_of(path) >= step:
            shutil.rmtree(path)


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])
