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


def operand_dtype(q: Tensor, backend: str) -> torch.dtype:
    """What the products read: half precision as it is on a GPU, whose products of it can be fp32, else fp32 or fp64."""
    return q.dtype if q.is_cuda and backend == "triton" else accumulate_dtype(q)


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
    """Losses [B] of the rows and the gradients of their sum in q and p (else empty), in fp32 (fp64 for fp64).

    The gradients lack the factor `scale` and have the factor `workspace_gain(q.dtype)`. q and p are of `operand_dtype`.
    chunk_rows: rows of logits held at once, with all their columns; 0 leaves the choice to `default_tiling`.
    """
    batch, columns = q.shape[0], p.shape[0]
    tiling = Tiling(min(chunk_rows, max(batch, 1)), columns) if chunk_rows else default_tiling(batch, columns, q.device)
    dtype = accumulate_dtype(q)
    losses = q.new_empty(batch, dtype=dtype)
    grad_q = q.new_empty(q.shape, dtype=dtype) if need_q else losses.new_empty(0)
    grad_p = p.new_empty(p.shape, dtype=dtype) if need_p else losses.new_empty(0)
    if batch == 0:
        return losses, grad_q, grad_p.zero_()
    tile = tiling.rows * min(tiling.columns, columns)
    visit = _whole_rows if tiling.columns >= columns else functools.partial(_tiles, tiling.columns)
    kernel = _Kernel(
        _module(backend),
        scale,
        losses.new_empty((2, problem.targets[1].shape[0])),
        losses.new_empty(tile),
        q.new_empty(tile) if q.dtype in _HALF and (need_q or need_p) else None,
    )
    for begin in range(0, batch, tiling.rows):
        rows = slice(begin, min(begin + tiling.rows, batch))
        visit(
            kernel,
            q[rows],
            p,
            problem.rows(rows.start, rows.stop),
            losses[rows],
            grad_q[rows] if need_q else None,
            grad_p if need_p else None,
            begin == 0,
        )
    return losses, grad_q, grad_p


@dataclass(frozen=True)
class _Kernel:
    """The module that does the softmax, and the memory that every chunk uses again.

    kept: [2, targets], their logits and slopes. logits, workspace: of one chunk or tile; the second, of the dtype of
    the embeddings, takes P - onehot where the products want it in half precision.
    """

    softmax: ModuleType
    scale: Tensor
    kept: Tensor
    logits: Tensor
    workspace: Tensor | None

    def products(self, block: Tensor, tile: Tensor) -> Tensor:
        rows, columns = block.shape[0], tile.shape[0]
        return _product(block, tile.T, self.logits[: rows * columns].view(rows, columns))

    def out(self, logits: Tensor) -> dict[str, Tensor]:
        return {} if self.workspace is None else {"out": self.workspace[: logits.numel()].view(logits.shape)}


def _whole_rows(
    kernel: _Kernel,
    block: Tensor,
    p: Tensor,
    problem: Problem,
    losses: Tensor,
    grad_q: Tensor | None,
    grad_p: Tensor | None,
    first_rows: bool,
) -> None:
    need = grad_q is not None or grad_p is not None
    logits = kernel.products(block, p)
    work = kernel.softmax.gradient(logits, kernel.scale, problem, kernel.kept, losses, need, **kernel.out(logits))
    if grad_q is not None:
        _product(work, p, grad_q)
    if grad_p is not None:
        _add_product(grad_p, work.T, block, first_rows)


def _tiles(
    width: int,
    kernel: _Kernel,
    block: Tensor,
    p: Tensor,
    problem: Problem,
    losses: Tensor,
    grad_q: Tensor | None,
    grad_p: Tensor | None,
    first_rows: bool,
) -> None:
    softmax, scale, kept = kernel.softmax, kernel.scale, kernel.kept
    begins = range(0, p.shape[0], width)
    top, factor = torch.empty_like(losses), torch.empty_like(losses)
    for begin in begins:
        logits = kernel.products(block, p[begin : begin + width])
        softmax.statistics(logits, scale, problem, kept, top, factor, begin, begin == 0)
    softmax.finish(top, factor, problem, kept, losses)
    if grad_q is None and grad_p is None:
        return
    for begin in begins:
        tile = p[begin : begin + width]
        logits = kernel.products(block, tile)
        work = softmax.tile_gradient(logits, scale, problem, kept, top, factor, begin, **kernel.out(logits))
        if grad_q is not None:
            _add_product(grad_q, work, tile, begin == 0)
        if grad_p is not None:
            _add_product(grad_p[begin : begin + width], work.T, block, first_rows)


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a b in the accumulation dtype: half precision goes to the tensor cores, its products come back as fp32."""
    if a.dtype in _HALF:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b, out=out)


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a b, or total = a b for the first."""
    if first:
        _product(a, b, total)
    elif a.dtype in _HALF:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a, b)


def _module(backend: str) -> ModuleType:
    """The module that does the softmax; imported here, for each needs something that may not be installed."""
    return importlib.import_module(f"ance_fast.ops.softmax_gradient_{_MODULES[backend]}")
