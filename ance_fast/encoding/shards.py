"""Embeddings on disk: `.npy` shards, the document ids, and a manifest that says which encoder made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.artifacts import open_artifact
from ance_fast.errors import ArtifactError

KIND = "embeddings"


class EmbeddingShards:
    """Memory-mapped embeddings [n, dim]; iterating gives one array a shard, in corpus order."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        with pa.memory_map(str(path / "ids.arrow")) as source:
            self.ids: Sequence[str] = pa.ipc.open_file(source).read_all().column("id").to_pylist()

    @classmethod
    def open(cls, path: str | Path, *, fingerprint: str | None = None, verify: bool = True) -> EmbeddingShards:
        """Open what `encode_corpus` wrote. Raises `ArtifactError` if it is damaged or made by another encoder."""
        root = Path(path)
        manifest = open_artifact(root, KIND, verify=verify)
        if fingerprint is not None and manifest["fingerprint"] != fingerprint:
            raise ArtifactError(
                f"{root}: embeddings of encoder {manifest['fingerprint']}, this one is {fingerprint}; "
                "encode the corpus again"
            )
        return cls(root, manifest)

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def __iter__(self) -> Iterator[np.ndarray]:
        for name in self.manifest["shards"]:
            yield np.load(self.path / name, mmap_mode="r")

    @property
    def dim(self) -> int:
        return int(self.manifest["dim"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder."""
        return str(self.manifest["fingerprint"])

    def read(self) -> np.ndarray:
        """All rows as one array in memory, in the stored dtype."""
        return np.concatenate(list(self)) if self.manifest["shards"] else np.zeros((0, self.dim), dtype=np.float32)
