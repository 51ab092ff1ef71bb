"""Exact search without FAISS: all vectors in one float32 matrix, matrix product and streaming top-k.

Costs n * N * dim multiply-adds and no training. Against FAISS `Flat`: same results, and equal scores at the k-th place
always resolve to the smallest position; FAISS is faster for single queries on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError


class ExactBackend:
    """Vectors [count, dim] on a torch device."""

    name = "torch"

    def __init__(self, dim: int, device: str = "cpu") -> None:
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device {device!r} asked for, but torch sees no CUDA device; use device='cpu'")
        self._blocks = [torch.empty((0, dim), dtype=torch.float32, device=device)]
        self._device = device

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks)

    def add(self, block: np.ndarray) -> None:
        """Append float32 [m, dim]."""
        import torch

        self._blocks.append(torch.tensor(block, device=self._device))

    def check_params(self, params: Mapping[str, int]) -> None:
        """Raises `ConfigError` on any parameter: exact search has none."""
        if params:
            raise ConfigError(f"search parameter {next(iter(params))!r} does not apply to Flat; it takes none")

    def search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best k rows of `queries` [n, dim] among those where `mask` (bool [count]) is set; see `exact_top_k`."""
        self.check_params(params)
        return exact_top_k(queries, self._vectors(), k, mask)

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of `rows`, float32 [len(rows), dim]."""
        import torch

        vectors: np.ndarray = self._vectors()[torch.as_tensor(rows, device=self._device)].cpu().numpy()
        return vectors

    def save(self, directory: Path) -> None:
        """Write vectors.npy."""
        np.save(directory / "vectors.npy", self._vectors().cpu().numpy())

    def _vectors(self) -> Any:
        import torch

        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]
        return self._blocks[0]


def exact_top_k(queries: np.ndarray, vectors: Any, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 and positions int64 [n, k] of float32 `queries` [n, dim] in the tensor `vectors` [N, dim]."""
    import torch

    from ance_fast.ops import topk_inner_product

    device = vectors.device
    allow = None if mask is None else torch.as_tensor(mask, device=device)
    with torch.no_grad():
        scores, positions = topk_inner_product(torch.as_tensor(queries, device=device), vectors, k, allow=allow)
    return scores.cpu().numpy(), positions.cpu().numpy()
