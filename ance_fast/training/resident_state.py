"""The state of rolling refresh in a checkpoint: a base snapshot and journals of the rows changed since.

    resident/base-00000399/     matrix.npy versions.npy candidates.npy scores.npy mined.npy
    resident/rows-00000499/     rows.npy, matrix and versions of these; queries.npy, candidates, scores, mined of these
    resident/rows-00000599/     ...

Where the sampler weights candidates or has them from several sources, log_weights.npy and origins.npy go with the
lists; where it reads centred scores, each part has total.npy.

The number is the last step it knows of. A checkpoint holds all it needs: what the one before had written is linked
into it, not copied, so that removing old checkpoints frees exactly what no other needs. When the journals together
would be as large as a base, a new base takes their place: about twice what has changed is written at most.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ance_fast.artifacts import fsync
from ance_fast.errors import ArtifactError
from ance_fast.index.mapped import write_npy
from ance_fast.training.negative_table import NegativeTable

TILE_ROWS = 16_384
# What stands past the end of a list. Without weights all of it is 0, which draws uniformly.
PAST_END = {"candidates": -1, "scores": -np.inf, "log_weights": 0.0, "origins": 0}


@dataclass
class ResidentState:
    """N passages, Q training queries, all arrays changed in place.

    matrix: float32 [N, dim] on the encoder's device. versions: int32 [N], the step each row was encoded at. candidates
    int32 [Q, K], scores float32 [Q, K], mined int32 [Q]: each query's latest list and the step it was mined at (-1:
    never). log_weights float32 [Q, K], origins uint8 [Q, K]: of the lists, as `NegativeTable` has them. total: float64
    [dim] on the same device, the sum of all rows, kept by `changed`. The last three are None where nothing reads them.
    saved: the step below which everything is in the newest checkpoint. bytes_written: into that checkpoint.
    """

    matrix: torch.Tensor
    versions: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    mined: np.ndarray
    log_weights: np.ndarray | None = None
    origins: np.ndarray | None = None
    total: torch.Tensor | None = None
    saved: int = -1
    bytes_written: int = 0

    def lists(self) -> dict[str, np.ndarray]:
        """The arrays that have a row for each training query, by name."""
        named = {name: getattr(self, name) for name in ("candidates", "scores", "mined", "log_weights", "origins")}
        return {name: array for name, array in named.items() if array is not None}

    @contextmanager
    def changed(self, rows: slice | np.ndarray) -> Iterator[None]:
        """Around a change of these rows of the matrix: keeps `total`."""
        if self.total is None:
            yield
            return
        where = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.matrix.device)
        self.total -= self.matrix[where].sum(dim=0, dtype=torch.float64)
        yield
        self.total += self.matrix[where].sum(dim=0, dtype=torch.float64)

    def keep(self, queries: np.ndarray, lists: NegativeTable, mined: int) -> None:
        """Take `lists`, a table of these queries (int64) no wider than K, as their latest, mined at step `mined`."""
        width = lists.candidates.shape[1]
        for name, nothing in PAST_END.items():
            kept, given = getattr(self, name), getattr(lists, name)
            if kept is not None:
                kept[queries] = nothing
            if kept is not None and given is not None:
                kept[queries, :width] = given
        self.mined[queries] = mined


def save_state(state: ResidentState, folder: Path, previous: Path | None) -> None:
    """Write `state` into the new `folder`: a journal behind the links to what `previous` has, or a base."""
    folder.mkdir(parents=True)
    earlier = _parts(previous) if previous is not None else []
    rows = np.flatnonzero(state.versions > state.saved)
    queries = np.flatnonzero(state.mined > state.saved)
    row_bytes = state.matrix.shape[1] * 4 + 4
    list_bytes = sum(array[:1].nbytes for array in state.lists().values())
    base_bytes = len(state.versions) * row_bytes + len(state.mined) * list_bytes
    journal_bytes = len(rows) * row_bytes + len(queries) * list_bytes
    newest = _newest(state)
    if not earlier or sum(_size(part) for part in earlier[1:]) + journal_bytes >= base_bytes:
        part = folder / f"base-{newest:08d}"
        part.mkdir()
        _write_matrix(part / "matrix.npy", state.matrix, None)
        np.save(part / "versions.npy", state.versions)
        for name, array in state.lists().items():
            np.save(part / f"{name}.npy", array)
    else:
        for old in earlier:
            _link(old, folder / old.name)
        part = folder / f"rows-{newest:08d}"
        part.mkdir()
        np.save(part / "rows.npy", rows)
        _write_matrix(part / "matrix.npy", state.matrix, rows)
        np.save(part / "versions.npy", state.versions[rows])
        np.save(part / "queries.npy", queries)
        for name, array in state.lists().items():
            np.save(part / f"{name}.npy", array[queries])
    if state.total is not None:
        np.save(part / "total.npy", state.total.cpu().numpy())
    state.bytes_written = _size(part)
    state.saved = newest


def load_state(state: ResidentState, folder: Path) -> ResidentState:
    """Fill `state` with what `save_state` wrote into `folder`. Raises `ArtifactError` if it is not there or of other
    shapes."""
    parts = _parts(folder)
    if not parts:
        raise ArtifactError(f"{folder}: the checkpoint lacks the state of refresh='rolling'; resume from another")
    for part in parts:
        base = part.name.startswith("base")
        rows = np.arange(len(state.versions)) if base else _read(part / "rows.npy")
        queries = slice(None) if base else _read(part / "queries.npy")
        stored = np.load(part / "matrix.npy", mmap_mode="r")
        if stored.shape != (len(rows), state.matrix.shape[1]):
            raise ArtifactError(f"{part}: vectors {list(stored.shape)} for {len(rows)} rows of {state.matrix.shape[1]}")
        for start in range(0, len(rows), TILE_ROWS):
            tile = torch.from_numpy(np.array(stored[start : start + TILE_ROWS]))
            where = torch.from_numpy(rows[start : start + TILE_ROWS])
            state.matrix[where.to(state.matrix.device)] = tile.to(state.matrix.device)
        state.versions[rows] = _read(part / "versions.npy")
        for name, array in state.lists().items():
            array[queries] = _read(part / f"{name}.npy")
        if state.total is not None:
            state.total.copy_(torch.from_numpy(_read(part / "total.npy")))
    state.bytes_written = _size(parts[-1])
    state.saved = _newest(state)
    return state


def _newest(state: ResidentState) -> int:
    return int(max(state.versions.max(), state.mined.max()))


def _parts(folder: Path) -> list[Path]:
    """The base and its journals, in the order they were written."""
    return [*sorted(folder.glob("base-*")), *sorted(folder.glob("rows-*"))]


def _size(part: Path) -> int:
    return sum(file.stat().st_size for file in part.iterdir())


def _read(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); resume from another checkpoint") from error
    return found


def _write_matrix(path: Path, matrix: torch.Tensor, rows: np.ndarray | None) -> None:
    count = len(matrix) if rows is None else len(rows)

    def tiles() -> Iterator[np.ndarray]:
        for start in range(0, count, TILE_ROWS):
            piece = slice(start, min(start + TILE_ROWS, count))
            taken = matrix[piece] if rows is None else matrix[torch.from_numpy(rows[piece]).to(matrix.device)]
            yield taken.cpu().numpy()

    write_npy(path, np.dtype("float32"), (count, matrix.shape[1]), tiles())


def _link(old: Path, new: Path) -> None:
    """The files of `old` under `new`: hard links, or copies where the file system has none."""
    new.mkdir()
    for file in old.iterdir():
        try:
            os.link(file, new / file.name)
        except OSError:
            shutil.copyfile(file, new / file.name)
            fsync(new / file.name)
