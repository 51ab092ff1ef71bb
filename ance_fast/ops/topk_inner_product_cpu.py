"""Streaming top-k on the CPU: tiles of scores that stay in the cache, where csrc/topk_collector.h reads them.

The tiles of vectors are the outer loop, so that a mapped matrix is read once, front to back, and half precision is
converted once; the tiles of queries are the inner one. 2 n N D FLOPs in GEMMs, and two reads of 4 bytes a score from
the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ance_fast import _C
from ance_fast.ops.topk_problem import Problem

# Fewer queries than this are limited by memory, which BLAS uses badly; measured on Sapphire Rapids, AVX-512.
FEW = 12
QUERY_ROWS = 1024  # queries scored at once
TILE_SCORES = 2**21  # 8 MB
TILE_ROWS = (1024, 16384)  # vectors scored at once: bounds
CONVERTED = 2**20  # numbers of a tile converted to fp32 at once: 4 MB


class Collector:
    """The threshold and the candidates of each query are in C++; the tiles are scored here."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._queries = problem.queries.float().contiguous()
        offsets, excluded = problem.exclude or (None, None)
        self._collector = _C.TopKCollector(
            problem.rows,
            problem.k,
            allow=_optional_array(problem.allow),
            exclude_offsets=_optional_array(offsets),
            excluded=_optional_array(excluded),
        )
        self._scores = torch.empty(0)
        self._converted = torch.empty(0)

    def add(self, vectors: Tensor, first: int) -> None:
        """vectors [m, D], rows first .. first + m of the matrix; on another device they are fetched."""
        problem, at = self._problem, 0
        rows = self._tile_rows(vectors)
        for tile in vectors.split(rows):
            count = tile.shape[0]
            if problem.allow is None or bool(problem.allow[first + at : first + at + count].any()):
                self._add_tile(self._float(tile), first + at)
            at += count

    def result(self) -> tuple[Tensor, Tensor]:
        shape = (self._problem.rows, self._problem.k)
        scores, positions = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
        self._collector.result(scores.numpy(), positions.numpy(), threads=torch.get_num_threads())
        return scores, positions

    def _tile_rows(self, vectors: Tensor) -> int:
        low, high = TILE_ROWS
        rows = min(max(TILE_SCORES // max(min(self._problem.rows, QUERY_ROWS), 1), low), high)
        if vectors.dtype != torch.float32:
            rows = min(rows, max(CONVERTED // max(vectors.shape[1], 1), 64))
        return rows

    def _float(self, tile: Tensor) -> Tensor:
        """The tile as contiguous fp32 in host memory: a view of it, or of memory that the next tile takes over."""
        if tile.dtype == torch.float32 and tile.device.type == "cpu" and tile.is_contiguous():
            return tile
        self._converted = _at_least(self._converted, tile.numel())
        return self._converted[: tile.numel()].view(tile.shape).copy_(tile)

    def _add_tile(self, tile: Tensor, first: int) -> None:
        threads, rows, count = torch.get_num_threads(), self._problem.rows, tile.shape[0]
        for begin in range(0, rows, QUERY_ROWS):
            queries = self._queries[begin : begin + QUERY_ROWS]
            wanted = queries.shape[0] * count
            self._scores = _at_least(self._scores, wanted)
            scores = self._scores[:wanted].view(queries.shape[0], count)
            if rows < FEW:
                _C.few_products(queries.numpy(), tile.numpy(), scores.numpy(), threads=threads)
            else:
                torch.mm(queries, tile.T, out=scores)
            self._collector.add(scores.numpy(), row=begin, first=first, threads=threads)


def _at_least(scratch: Tensor, size: int) -> Tensor:
    return scratch if scratch.numel() >= size else torch.empty(size)


def _optional_array(tensor: Tensor | None) -> _C.Array | None:
    return None if tensor is None else tensor.contiguous().numpy()
