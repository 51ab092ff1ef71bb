"""Streaming top-k on a GPU: cuBLAS makes a tile of scores, Triton kernels keep what beats each query's k-th best.

`filter_kernel` reads every score once and appends the keys (`topk_keys`) of those that reach their row's threshold and
may be returned to the row's buffer, at a place that an atomic counter gives out. `compact_kernel` cuts a buffer that
fills up to its k best and raises the threshold; rows with room left do nothing. The host knows how wide a tile may be
for the expected k ln(1 + width / seen) new keys of a row and waits for nothing until the end of an `add`. There it asks
once which rows had more than their buffer holds, and searches that `add` again for them in plain torch. What a
buffer keeps depends on no order of the threads: keys never tie.

FLOPs: 2 n N D in GEMMs. Bytes beside them: 4 n N written and 4 n N read, from the L2 cache for narrow tiles, so as long
as the GEMM itself at D = 768 on an H200 where it is missed. Expected limiter: half GEMM, half memory. Not yet measured
on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are Triton's dialect of Python, where a parameter has no Python type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ance_fast.ops import topk_inner_product_torch as plain
from ance_fast.ops.topk_keys import EMPTY, POSITIONS, unpack_keys
from ance_fast.ops.topk_problem import Problem
from ance_fast.ops.triton_common import on_device_of

QUERY_ROWS = 4096  # queries scored at once
TILE_ROWS = 16384  # vectors scored at once, at most: 256 MB of scores
SMALLEST_BUFFER = 1024  # keys of a row
BLOCK = 2048  # scores, or keys, that a program looks at together

_EMPTY = tl.constexpr(EMPTY)
_LAST = tl.constexpr(POSITIONS - 1)
_HALF = (torch.float16, torch.bfloat16)


@triton.jit
def _ordered(bits):
    """float32 bits as integers of the same order, and back."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _excluded(excluded, offsets, row, position, hit):
    """Which of `position`, where `hit`, are in the row's ascending list."""
    end = tl.load(offsets + row + 1)
    low = tl.load(offsets + row) + tl.zeros_like(position)
    high = end + tl.zeros_like(position)
    while tl.max(high - low, 0) > 0:
        open_ = low < high
        middle = (low + high) // 2
        less = tl.load(excluded + middle, mask=open_ & hit, other=0) < position
        low = tl.where(open_ & less, middle + 1, low)
        high = tl.where(open_ & (less == 0), middle, high)
    there = hit & (low < end)
    return there & (tl.load(excluded + low, mask=there, other=0) == position)


@triton.jit
def filter_kernel(scores, columns, first, keys, count, kth, capacity, allow, offsets, excluded, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + row * columns + column, mask=column < columns, other=-float("inf"))
    least = tl.load(kth + row)
    reached = _ordered((least >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    lowest = -3.4028234663852886e38  # -inf and NaN are never kept
    hit = score >= tl.where(least == _EMPTY, lowest, reached)
    if tl.sum(hit.to(tl.int32), 0) > 0:
        position = first + column.to(tl.int64)
        bits = _ordered((score + 0.0).to(tl.int32, bitcast=True))  # -0 + 0 is +0
        key = (bits.to(tl.int64) << 32) + (_LAST - position)
        hit = hit & (key > least)
        if allow is not None:
            hit = hit & (tl.load(allow + position, mask=hit, other=0) != 0)
        if excluded is not None:
            hit = hit & (_excluded(excluded, offsets, row, position, hit) == 0)
        one = hit.to(tl.int32)
        number = tl.sum(one, 0)
        if number > 0:
            slot = tl.atomic_add(count + row, number, sem="relaxed") + tl.cumsum(one, 0) - 1
            tl.store(keys + row * capacity + slot, key, mask=hit & (slot < capacity))


@triton.jit
def compact_kernel(keys, count, kth, overflowed, k, capacity, limit, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    reached = tl.load(count + row)
    if reached > limit:
        if reached > capacity:
            tl.store(overflowed + row, 1)
        entries = tl.minimum(reached, capacity)
        mine = keys + row * capacity
        # The k-th largest key, bit after bit from the sign: EMPTY if there are fewer than k.
        found = reached.to(tl.int64) * 0 + _EMPTY
        for place in range(64):
            candidate = found ^ (tl.full((), 1, tl.int64) << (tl.full((), 63, tl.int64) - place))
            larger = reached * 0
            for at in range(0, entries, BLOCK):
                index = at + tl.arange(0, BLOCK)
                key = tl.load(mine + index, mask=index < entries, other=_EMPTY)
                larger += tl.sum((key >= candidate).to(tl.int32), 0)
            found = tl.where(larger >= k, candidate, found)
        kept = reached * 0
        for at in range(0, entries, BLOCK):
            index = at + tl.arange(0, BLOCK)
            key = tl.load(mine + index, mask=index < entries, other=_EMPTY)
            stays = ((key >= found) & (key != _EMPTY)).to(tl.int32)
            slot = kept + tl.cumsum(stays, 0) - 1
            # Keys move to the front, over others of this block that all lanes must have read.
            tl.debug_barrier()
            tl.store(mine + slot, key, mask=stays != 0)
            kept += tl.sum(stays, 0)
        tl.store(count + row, kept)
        tl.store(kth + row, found)


class Collector:
    """Buffers, counters and thresholds of all queries on the device."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._queries = problem.queries.contiguous()
        self._capacity = max(SMALLEST_BUFFER, triton.next_power_of_2(8 * problem.k))
        device, rows = problem.queries.device, problem.rows
        self._keys = torch.empty(rows, self._capacity, dtype=torch.int64, device=device)
        self._count = torch.zeros(rows, dtype=torch.int32, device=device)
        self._kth = torch.full((rows,), EMPTY, device=device)
        self._overflowed = torch.zeros(rows, dtype=torch.int32, device=device)
        self._seen = 0
        self._scores = torch.empty(0, device=device)

    def add(self, vectors: Tensor, first: int) -> None:
        """vectors [m, D], rows first .. first + m of the matrix; tiles on another device are fetched."""
        if not self._problem.rows:
            return
        at, certain = 0, True
        while at < vectors.shape[0]:
            width = min(self._width(), vectors.shape[0] - at)
            self._add_tile(vectors[at : at + width], first + at)
            certain = certain and width <= self._capacity // 2
            at += width
        if not certain:
            self._search_overflowed(vectors, first)

    def result(self) -> tuple[Tensor, Tensor]:
        k = self._problem.k
        if self._problem.rows:
            self._compact(slice(0, self._problem.rows), 0)
        place = torch.arange(k, device=self._keys.device)
        keys = self._keys[:, :k].masked_fill(place >= self._count[:, None], EMPTY)
        return unpack_keys(keys.sort(dim=1, descending=True).values)

    def _width(self) -> int:
        """Vectors of the next tile: half a buffer always fits; more while a quarter of one is expected of them."""
        expected = self._seen * self._capacity // (4 * self._problem.k)
        return max(self._capacity // 2, min(expected, TILE_ROWS) // 16 * 16)

    def _add_tile(self, vectors: Tensor, first: int) -> None:
        tile = vectors.to(self._queries.device, non_blocking=True)
        # While the matrix grows fast under them, thresholds are raised after every tile.
        young = 2 * tile.shape[0] > self._seen
        self._seen += tile.shape[0]
        for begin in range(0, self._problem.rows, QUERY_ROWS):
            block = slice(begin, min(begin + QUERY_ROWS, self._problem.rows))
            self._filter(self._product(block, tile), first, block)
            self._compact(block, self._problem.k - 1 if young else self._capacity // 2)

    def _product(self, block: slice, tile: Tensor) -> Tensor:
        queries = self._queries[block]
        wanted = queries.shape[0] * tile.shape[0]
        if self._scores.numel() < wanted:
            self._scores = self._scores.new_empty(wanted)
        scores = self._scores[:wanted].view(queries.shape[0], tile.shape[0])
        if queries.dtype == tile.dtype and tile.dtype in _HALF and tile.is_cuda:
            return torch.mm(queries, tile.T, out_dtype=torch.float32, out=scores)
        return torch.mm(queries.float(), tile.float().T, out=scores)

    def _filter(self, scores: Tensor, first: int, block: slice) -> None:
        offsets, excluded = self._problem.exclude or (None, None)
        rows, columns = scores.shape
        with on_device_of(scores):
            filter_kernel[(rows, triton.cdiv(columns, BLOCK))](
                scores,
                columns,
                first,
                self._keys[block],
                self._count[block],
                self._kth[block],
                self._capacity,
                self._problem.allow,
                None if offsets is None else offsets[block.start :],
                excluded,
                BLOCK=BLOCK,
                num_warps=8,
            )

    def _compact(self, block: slice, limit: int) -> None:
        with on_device_of(self._keys):
            compact_kernel[(block.stop - block.start,)](
                self._keys[block],
                self._count[block],
                self._kth[block],
                self._overflowed[block],
                self._problem.k,
                self._capacity,
                limit,
                BLOCK=BLOCK,
                num_warps=8,
            )

    def _search_overflowed(self, vectors: Tensor, first: int) -> None:
        """Search `vectors` again for the queries that lost keys. What such a query kept of earlier vectors stands: it
        only gave up keys for k better ones."""
        rows = self._overflowed.nonzero()[:, 0]  # waits for the device
        if not rows.shape[0]:
            return
        self._compact(slice(0, self._problem.rows), 0)
        k = self._problem.k
        kept = self._keys[rows, :k]
        position = POSITIONS - 1 - (kept & (POSITIONS - 1))
        again = (position >= first) & (position < first + vectors.shape[0])
        unused = torch.arange(k, device=rows.device) >= self._count[rows][:, None]
        search = plain.Collector(self._problem.only(rows))
        search.best = kept.masked_fill(again | unused, EMPTY)
        search.add(vectors.to(rows.device), first)
        self._keys[rows, :k] = search.best
        self._count[rows] = k
        self._kth[rows] = search.best.amin(1)
        self._overflowed.zero_()
