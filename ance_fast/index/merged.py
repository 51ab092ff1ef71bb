"""Several indexes searched as one, none of them copied: each is searched for k, and the k best of all are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index.backends import Backend
from ance_fast.index.result import ranked
from ance_fast.index.selection import Selection


class MergedBackend:
    """The rows of `parts`, one after the other. As exact as its parts are."""

    name = "merged"

    def __init__(self, parts: Sequence[Backend]) -> None:
        self._parts = list(parts)
        self._firsts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def check_params(self, params: Mapping[str, int]) -> None:
        """Raises `ConfigError` for a parameter that no part takes."""
        for key, value in params.items():
            if not any(_takes(part, key, value) for part in self._parts):
                self._parts[0].check_params({key: value})

    def search(
        self, queries: np.ndarray, k: int, selection: Selection, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows of all parts by (-score, position); a parameter goes to the parts that take it."""
        self.check_params(params)
        scores, positions = [], []
        for part, first, stop in zip(self._parts, self._firsts, self._firsts[1:], strict=False):
            here = selection.documents(int(first), int(stop))
            reachable = min(k, here.allowed)
            if not reachable:
                continue
            own = {key: value for key, value in params.items() if _takes(part, key, value)}
            best, found = part.search(queries, reachable, here, own)
            scores.append(best)
            positions.append(np.where(found < 0, -1, found + first))
        best, found = ranked(np.concatenate(scores, axis=1), np.concatenate(positions, axis=1))
        return best[:, :k], found[:, :k]

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of `rows`, float32 [len(rows), dim]. Raises `ConfigError` unless all parts are Flat."""
        holder = np.searchsorted(self._firsts, rows, side="right") - 1
        pieces = [part.reconstruct(rows[holder == n] - self._firsts[n]) for n, part in enumerate(self._parts)]
        return np.concatenate(pieces)[np.argsort(np.argsort(holder, kind="stable"), kind="stable")]

    def add(self, block: np.ndarray) -> None:
        """Raises `ConfigError`, as `replace`, `remove` and `save` do."""
        _refuse()

    def replace(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        _refuse()

    def remove(self, rows: np.ndarray) -> None:
        _refuse()

    def save(self, directory: Path) -> dict[str, Any]:
        _refuse()


def _takes(part: Backend, key: str, value: int) -> bool:
    try:
        part.check_params({key: value})
    except ConfigError:
        return False
    return True


def _refuse() -> NoReturn:
    raise ConfigError("a merged index is a view of its parts; change and save those, and merge them again")
