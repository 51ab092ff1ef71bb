"""Where embeddings go: anything that takes blocks of rows in corpus order."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Sink(Protocol):
    """A consumer of the pipeline. Its thread calls `write` with every block once, from the first row to the last."""

    stage: str
    """The stage its time is counted under: "write", "add" or a name of its own."""

    def write(self, start: int, block: np.ndarray) -> None:
        """Rows start .. start + m - 1, float32 [m, dim]. The memory is used again after the call: copy what is kept."""
        ...


class MatrixSink:
    """Copies rows into a NumPy matrix [n, dim], memory-mapped or not; row `first` of the corpus is its row 0.

    Rounded to the matrix's dtype. A torch matrix on the encoder's own device needs no sink: see `resident` in
    `encode_spans`.
    """

    stage = "write"

    def __init__(self, matrix: np.ndarray, first: int = 0) -> None:
        self.matrix = matrix
        self._first = first

    def write(self, start: int, block: np.ndarray) -> None:
        self.matrix[start - self._first : start - self._first + len(block)] = block
