"""Embeddings on disk: `.npy` shards, the document ids, and a manifest that says which encoder made them from what.

Float16 shards may be centred: `mean.npy` (float32 [dim], the mean of a sample of the corpus) has been subtracted before
rounding. For unnormalised vectors that share a large common part that keeps the bits for what tells documents apart,
and since q·x = q·(x - mean) + q·mean the order of inner products is that of the stored vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.artifacts import open_artifact
from ance_fast.data.chunks import SEPARATOR
from ance_fast.data.id_column import IdColumn
from ance_fast.data.text_record import TextRecord, check_text_record
from ance_fast.encoding.shard_writer import map_shard
from ance_fast.errors import ArtifactError

KIND = "embeddings"
IDS = "ids.arrow"
MEAN = "mean.npy"
REMEDY = "encode the corpus again to the same place: only what is damaged is done anew"
_RESTORED_ROWS = 8192
_ID_ROWS = 65536


class EmbeddingShards:
    """Memory-mapped embeddings [n, dim] in corpus order; iterating gives blocks [m, dim], one array after another.

    Attributes:
        path, manifest: of the directory.
        ids: document ids in row order, a sequence that lies in Arrow memory (`ids.arrow` is the column).
        mean: float32 [dim] that is subtracted from what is stored, None if nothing is.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        try:
            self._names, self._starts = _layout(manifest)
            rows, self._dtype = int(manifest["rows"]), str(np.dtype(manifest["dtype"]))
            self.dim = int(manifest["dim"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: its manifest lacks {error}; encode the corpus to another place") from error
        self.ids = IdColumn(read_ids(path / IDS))
        if not len(self.ids) == rows == int(self._starts[-1]):
            raise ArtifactError(
                f"{path}: {len(self.ids)} ids, {self._starts[-1]} rows in shards, {rows} in the manifest; {REMEDY}"
            )
        self.mean: np.ndarray | None = read_mean(path / MEAN, self.dim) if manifest.get("centred") else None

    @classmethod
    def open(
        cls, path: str | Path, *, fingerprint: str | None = None, tokenizer: Any = None, verify: bool = True
    ) -> EmbeddingShards:
        """Open what `encode_corpus` wrote.

        fingerprint: of the encoder that the queries will come from. tokenizer: its tokenizer of documents.
        verify: read every file once to compare checksums; without it names, sizes and shapes are compared.

        Raises `ArtifactError`: missing, incomplete or damaged (names the file), or made by another encoder or
        other text rules.
        """
        root = Path(path)
        manifest = open_artifact(root, KIND, verify=verify, remedy=REMEDY)
        if fingerprint is not None and manifest.get("fingerprint") != fingerprint:
            raise ArtifactError(
                f"{root}: embeddings of encoder {manifest.get('fingerprint')}, this one is {fingerprint}; "
                "encode the corpus again"
            )
        shards = cls(root, manifest)
        check_text_record(root, shards.text_record, tokenizer)
        return shards

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"EmbeddingShards({str(self.path)!r}, {len(self)} x {self.dim}, {self._dtype})"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks [m, dim]: shards as they are mapped, or, where a mean was subtracted, float32 pieces with it again."""
        for number in range(len(self._names)):
            shard = self._map(number)
            if self.mean is None:
                yield shard
            else:
                for start in range(0, len(shard), _RESTORED_ROWS):
                    yield self._restored(shard[start : start + _RESTORED_ROWS])

    def stored(self) -> list[tuple[int, np.ndarray]]:
        """(first row, [m, dim] memory-mapped) of each shard as it is stored: less `mean`, if there is one.

        Raises `ArtifactError` naming a file that is not what the manifest says.
        """
        return [(int(self._starts[number]), self._map(number)) for number in range(len(self._names))]

    def read(self, rows: Any = None) -> np.ndarray:
        """Copies of `rows` (integers in any order; None: all) in memory, [len(rows), dim].

        The dtype is the stored one, float32 where a mean was subtracted. Raises `IndexError` for rows out of range.
        """
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} of {len(self)} embeddings")
        found = np.empty((len(wanted), self.dim), dtype=self.dtype if self.mean is None else np.float32)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(shards):
            places = np.flatnonzero(shards == number)
            local = wanted[places] - self._starts[number]
            for first in range(0, len(places), _RESTORED_ROWS):
                piece = slice(first, first + _RESTORED_ROWS)
                block = self._map(int(number))[local[piece]]
                found[places[piece]] = block if self.mean is None else self._restored(block)
        return found

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored: float32 or float16."""
        return np.dtype(self._dtype)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder."""
        return str(self.manifest["fingerprint"])

    @property
    def document_separator(self) -> str | None:
        """What stands between a document's id and a chunk's number in `ids`; None where a row is a document."""
        return None if self.manifest.get("settings", {}).get("chunks") is None else SEPARATOR

    @property
    def text_record(self) -> TextRecord | None:
        """What made tokens of the texts; None where that is not recorded (imported embeddings)."""
        settings = self.manifest.get("settings", {})
        return TextRecord(settings["tokenizer"], settings.get("text_preset")) if "tokenizer" in settings else None

    def _restored(self, block: np.ndarray) -> np.ndarray:
        assert self.mean is not None
        return block.astype(np.float32) + self.mean

    def _map(self, number: int) -> np.ndarray:
        rows = int(self._starts[number + 1] - self._starts[number])
        return map_shard(self.path / self._names[number], rows, self.dim, self._dtype, REMEDY)


def _layout(manifest: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """(file names, first rows int64 [shards + 1]) of the shards; the last entry is the number of rows."""
    names, starts = [], []
    for number, shard in enumerate(manifest["shards"]):
        if isinstance(shard, str):  # release 0.1.0: names alone, every shard but the last of the same size
            shard = {"file": shard, "start": number * manifest["shard_rows"]}
        names.append(str(shard["file"]))
        starts.append(int(shard["start"]))
    ends = np.array([*starts, manifest["rows"]], dtype=np.int64)
    if ends[0] != 0 or (np.diff(ends) < 0).any():
        raise ValueError("an order of the shards' first rows")
    return names, ends


def read_ids(path: Path) -> pa.ChunkedArray:
    """The ids column, mapped. Raises `ArtifactError`."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("id").cast(pa.large_string())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArtifactError(f"{path}: not a column of ids ({error}); {REMEDY}") from error


def write_ids(path: Path, ids: pa.ChunkedArray) -> None:
    """Write the ids in pieces of one size, so that the file does not depend on how the token store is cut."""
    schema = pa.schema([pa.field("id", pa.large_string(), nullable=False)])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(ids), _ID_ROWS):
            piece = pa.concat_arrays(ids.slice(start, _ID_ROWS).chunks)
            writer.write_batch(pa.record_batch([piece], schema=schema))


def read_mean(path: Path, dim: int) -> np.ndarray:
    """The subtracted mean, float32 [dim]. Raises `ArtifactError`."""
    try:
        mean: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as .npy ({error}); encode the corpus again") from error
    if mean.dtype != np.float32 or mean.shape != (dim,):
        raise ArtifactError(f"{path}: {mean.dtype} {list(mean.shape)}, expected float32 [{dim}]; {REMEDY}")
    return mean
