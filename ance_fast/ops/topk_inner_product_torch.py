"""Streaming top-k in plain torch: one GEMM a block of scores, and a merge of its keys with the best k so far."""

from __future__ import annotations

import torch
from torch import Tensor

from ance_fast.ops.topk_keys import EMPTY, pack_keys, unpack_keys
from ance_fast.ops.topk_problem import Problem

BLOCK_SCORES = 2**22  # scored at once
TILE_ROWS = 16384  # vectors scored at once


class Collector:
    """The best k keys of each query, in no order that matters."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.best = torch.full((problem.rows, problem.k), EMPTY, device=problem.queries.device)

    def add(self, vectors: Tensor, first: int) -> None:
        """vectors [m, D], rows first .. first + m of the matrix, on the queries' device."""
        problem = self.problem
        rows = max(1, BLOCK_SCORES // (min(TILE_ROWS, max(vectors.shape[0], 1)) + problem.k))
        for at in range(0, vectors.shape[0], TILE_ROWS):
            tile = vectors[at : at + TILE_ROWS].float()
            positions = torch.arange(first + at, first + at + tile.shape[0], device=tile.device)
            hidden = problem.hidden(first + at, tile.shape[0])
            for begin in range(0, problem.rows, rows):
                block = slice(begin, min(begin + rows, problem.rows))
                keys = pack_keys(problem.queries[block].float() @ tile.T, positions)
                hidden.apply(keys, block, EMPTY)
                self.best[block] = torch.cat([self.best[block], keys], 1).topk(problem.k, sorted=False).values

    def result(self) -> tuple[Tensor, Tensor]:
        return unpack_keys(self.best.sort(dim=1, descending=True).values)
