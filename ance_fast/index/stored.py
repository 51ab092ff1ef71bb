"""A saved index: what its directory records and how its files are checked."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import ArtifactError
from ance_fast.index import factory as factories
from ance_fast.index.backends import Backend
from ance_fast.index.devices import torch_devices
from ance_fast.index.exact import ExactBackend
from ance_fast.index.faiss_index import FaissBackend
from ance_fast.index.mapped import MappedFile
from ance_fast.index.vectors import BLOCK_ROWS


def read_backend(
    root: Path, manifest: Mapping[str, Any], factory: str, dim: int, devices: Sequence[str], on_disk: bool
) -> Backend:
    """What `Backend.save` wrote into `root`. Raises `ArtifactError` if it is not that."""
    if not factories.is_flat(factory):
        return FaissBackend.load(factory, root, devices)
    names = torch_devices(devices)
    # Indexes of version 0.1 hold float32 in vectors.npy and say nothing more.
    files = [MappedFile(root / name, dim) for name in manifest.get("vectors", ["vectors.npy"])]
    exact = ExactBackend(
        dim,
        names,
        dtype=manifest.get("dtype", "float32"),
        mean=_read_mean(root / "mean.npy", dim) if manifest.get("centred") else None,
        normalize=manifest.get("normalize", False),
    )
    if on_disk or (len(names) == 1 and names[0] == "cpu"):
        for file in files:
            exact.attach(file.rows, file, on_disk=on_disk)
        return exact
    exact.reserve(sum(len(file.rows) for file in files))
    for file in files:
        for start in range(0, len(file.rows), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(file.rows))
            exact.add_stored(file.rows[start:stop])
            file.forget(start, stop)
    return exact


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


def versions() -> dict[str, str]:
    """Installed versions of what made the index."""
    found = {}
    for name in ("ance_fast", "numpy", "pyarrow", "torch", "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read_mean(path: Path, dim: int) -> np.ndarray:
    try:
        mean: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); build the index again") from error
    if mean.shape != (dim,) or mean.dtype != np.float32:
        raise ArtifactError(f"{path}: {mean.dtype} {list(mean.shape)}, expected float32 [{dim}]")
    return mean
