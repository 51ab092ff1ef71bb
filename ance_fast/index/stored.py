"""Pieces of a saved index: what its directory records and how its files are checked."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np

from ance_fast.errors import ArtifactError


def check_fingerprint(root: Path, recorded: str | None, wanted: str | None) -> None:
    """Raises `ArtifactError` unless `wanted` is None or the encoder fingerprint that is recorded."""
    if wanted is None or wanted == recorded:
        return
    if recorded is None:
        raise ArtifactError(
            f"{root}: records no encoder, so it cannot be checked against encoder {wanted}; build it with "
            "fingerprint=..., or load it without to use it unchecked"
        )
    raise ArtifactError(
        f"{root}: built by encoder {recorded}, you are using encoder {wanted}; their vectors do not compare, "
        "encode the corpus again"
    )


def read_vectors(path: Path, dim: int) -> np.ndarray:
    """Map vectors.npy, float32 [count, dim]. Raises `ArtifactError` if it is anything else."""
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); build the index again") from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ArtifactError(f"{path}: {vectors.dtype} {list(vectors.shape)}, expected float32 [count, {dim}]")
    return vectors


def versions() -> dict[str, str]:
    """Installed versions of what made the index."""
    found = {}
    for name in ("ance_fast", "numpy", "pyarrow", "torch", "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
