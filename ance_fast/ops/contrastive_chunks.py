"""The chunk loop of `contrastive_loss`: matrix products, with one softmax kernel between them.

A chunk of rows takes three products, S = q p^T, dQ = G p and dP += G^T q: 6 B N D FLOPs in all. Where so few rows fit
that the products would starve, the columns are cut into tiles as well; the logits are then computed twice, first for
each row's log-sum-exp, then for the gradient: 8 B N D. Chunks and tiles are visited in order, so at a fixed chunk size
results do not change from run to run.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ance_fast.ops.contrastive_problem import Problem
from ance_fast.ops.loss_wiring import accumulate_dtype

# Under this many rows a product reads p from memory for too little arithmetic.
FEWEST_ROWS = 256
# Bytes of fp32 logits: those aimed at (on a GPU a share of the L2 cache instead), and those beyond which FEWEST_ROWS
# rows are cut into tiles of columns.
CPU_CHUNK, CPU_LIMIT = 4 * 2**20, 16 * 2**20
GPU_L2_SHARE, GPU_LIMIT = 0.4, 512 * 2**20
_HALF = (torch.float16, torch.bfloat16)
_MODULES = {"cpp": "cpu", "triton": "triton", "torch": "torch"}


@dataclass(frozen=True)
class Tiling:
    """Rows held at once, and columns held at once (all of them in a plain chunk)."""

    rows: int
    columns: int


def default_tiling(rows: int, columns: int, device: torch.device) -> Tiling:
    """Chunk for [rows, columns] logits on a device."""
    rows, columns = max(rows, 1), max(columns, 1)
    aim, limit = CPU_CHUNK, CPU_LIMIT
    if device.type == "cuda":
        aim, limit = int(GPU_L2_SHARE * torch.cuda.get_device_properties(device).L2_cache_size), GPU_LIMIT
    fewest = min(FEWEST_ROWS, rows)
    if 4 * fewest * columns > limit:
        return Tiling(fewest, max(1, limit // (4 * fewest)))
    return Tiling(min(rows, max(FEWEST_ROWS, aim // (4 * columns) // 64 * 64)), columns)


def chunked_loss(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    problem: Problem,
    *,
    backend: str,
    chunk_rows: int,
    need_q: bool,
    need_p: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [B] of the rows and the gradients of their sum in q and p, before the factor `scale` (else empty).

    All are fp32 (fp64 for fp64). Half precision q and p need a GPU, whose products of them can be fp32.

    chunk_rows: rows of logits held at once, with all their columns; 0 leaves the choice to `default_tiling`.
    """
    batch, columns = q.shape[0], p.shape[0]
    kernel = _kernel(backend)
    tiling = Tiling(chunk_rows, columns) if chunk_rows else default_tiling(batch, columns, q.device)
    dtype = accumulate_dtype(q)
    losses = q.new_empty(batch, dtype=dtype)
    grad_q = q.new_empty(q.shape, dtype=dtype) if need_q else losses.new_empty(0)
    grad_p = p.new_zeros(p.shape, dtype=dtype) if need_p else losses.new_empty(0)
    visit = _whole_rows if tiling.columns >= columns else functools.partial(_tiles, tiling.columns)
    for begin in range(0, batch, tiling.rows):
        end = min(begin + tiling.rows, batch)
        losses[begin:end] = visit(
            kernel,
            q[begin:end],
            p,
            scale,
            problem.rows(begin, end),
            grad_q[begin:end] if need_q else None,
            grad_p if need_p else None,
        )
    return losses, grad_q, grad_p


def _whole_rows(
    kernel: ModuleType,
    block: Tensor,
    p: Tensor,
    scale: Tensor,
    problem: Problem,
    grad_q: Tensor | None,
    grad_p: Tensor | None,
) -> Tensor:
    need = grad_q is not None or grad_p is not None
    losses: Tensor
    logits = _product(block, p.T)
    losses, work = kernel.gradient(logits, scale, problem, need, *_workspace(logits, block))
    if grad_q is not None:
        _product(work, p, out=grad_q)
    if grad_p is not None:
        _accumulate(grad_p, work.T, block)
    return losses


def _tiles(
    width: int,
    kernel: ModuleType,
    block: Tensor,
    p: Tensor,
    scale: Tensor,
    problem: Problem,
    grad_q: Tensor | None,
    grad_p: Tensor | None,
) -> Tensor:
    begins = range(0, p.shape[0], width)
    top = block.new_full((block.shape[0],), -torch.inf, dtype=accumulate_dtype(block))
    total = torch.zeros_like(top)
    target_logits: Tensor | None = None
    for begin in begins:
        found = kernel.statistics(_product(block, p[begin : begin + width].T), scale, problem, begin)
        top, total = _merge(top, total, found[0], found[1])
        target_logits = found[2] if target_logits is None else torch.where(found[2].isnan(), target_logits, found[2])
    assert target_logits is not None
    losses, factor, slopes = kernel.finish(top, total, target_logits, problem)
    if grad_q is None and grad_p is None:
        return losses
    if grad_q is not None:
        grad_q.zero_()
    for begin in begins:
        tile = p[begin : begin + width]
        logits = _product(block, tile.T)
        work = kernel.tile_gradient(logits, scale, problem, begin, top, factor, slopes, *_workspace(logits, block))
        if grad_q is not None:
            _accumulate(grad_q, work, tile)
        if grad_p is not None:
            _accumulate(grad_p[begin : begin + width], work.T, block)
    return losses


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b in the accumulation dtype: half precision goes to the tensor cores, its products come back as fp32."""
    if a.dtype in _HALF:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b, out=out)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b."""
    if a.dtype in _HALF:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a, b)


def _workspace(logits: Tensor, block: Tensor) -> tuple[Tensor, ...]:
    """Where P - onehot goes if not over the logits: in the dtype of the embeddings, as the products want it."""
    return (torch.empty_like(logits, dtype=block.dtype),) if block.dtype in _HALF else ()


def _merge(top: Tensor, total: Tensor, other_top: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of two sets of columns, each given as (largest, sum of exp(s - largest))."""
    high = torch.maximum(top, other_top)
    shift = torch.where(torch.isneginf(high), 0, high)
    return high, total * (top - shift).exp() + other_total * (other_top - shift).exp()


def _kernel(backend: str) -> ModuleType:
    """The module that does the softmax; imported here, for each needs something that may not be installed."""
    return importlib.import_module(f"ance_fast.ops.softmax_gradient_{_MODULES[backend]}")
