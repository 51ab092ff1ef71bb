"""`pairwise_loss` and its gradients in one launch: a Triton kernel, one program a query row.

A program first takes the differences q . (n - p) of its row, a group of negatives at a time, to losses and slopes, and
then goes through the width again to write the gradients; what it reads the second time is in the L1 cache for a few
negatives and in L2 for many. Arithmetic is fp32 whatever the input. The program that finishes last adds the rows up, in
their order, so that no sum depends on scheduling.

FLOPs: about 7 B H D + 3 B D. Minimal bytes: (2 + H) B D elements read, and as many fp32 written when gradients are
wanted: 38 + 75 MB, about 0.03 ms, for B = 8192, H = 1, D = 768 in bf16. Expected limiter: the launch, then memory
bandwidth. There is no matrix product here, so no tensor core. Not yet measured on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are Triton's dialect of Python, where a parameter has no Python type.

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ance_fast.ops.triton_common import on_device_of, scale_arguments, scale_value, softplus_and_slope

# Of a group of negatives by columns: values held in registers.
TILE = 4096
# Rows added up at a time by the last program.
ROWS = tl.constexpr(2048)


@triton.jit
def _valid(mask, row, negatives, index):
    """Which of the row's negatives `index` exist and count."""
    valid = index < negatives
    if mask is not None:
        valid = valid & (tl.load(mask + row * negatives + index, mask=valid, other=0) != 0)
    return valid


@triton.jit
def _count(mask, row, negatives, GROUP: tl.constexpr):
    """How many of the row's negatives count, at least 1, as fp32."""
    valid = tl.zeros((GROUP,), tl.int32)
    for at in range(0, negatives, GROUP):
        valid += _valid(mask, row, negatives, at + tl.arange(0, GROUP)).to(tl.int32)
    return tl.maximum(tl.sum(valid, 0), 1).to(tl.float32)


@triton.jit
def _negatives(neg, row, negatives, dim, index, column, valid):
    """fp32 [group, columns] of the row's negatives; what is not valid is not even read, for it may be NaN."""
    place = (row * negatives + index)[:, None] * dim + column[None, :]
    return tl.load(neg + place, mask=valid[:, None] & (column < dim)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _sum_rows(values, rows):
    """Sum of values 0 .. rows, which other programs have stored: past the L1 cache, which may hold what was there."""
    total = tl.zeros((ROWS,), tl.float32)
    for at in range(0, rows, ROWS):
        index = at + tl.arange(0, ROWS)
        total += tl.load(values + index, mask=index < rows, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def pairwise_loss_kernel(
    q,
    pos,
    neg,
    mask,
    negatives,
    dim,
    scale,
    SCALE_IN_MEMORY: tl.constexpr,
    rows,
    finished,
    losses,
    grad_scales,
    loss,
    grad_scale,
    slopes,
    grad_q,
    grad_pos,
    grad_neg,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    factor = scale_value(scale, SCALE_IN_MEMORY)
    count = _count(mask, row, negatives, GROUP)
    loss_sum = tl.zeros((GROUP,), tl.float32)
    slope_sum = tl.zeros((GROUP,), tl.float32)
    scale_sum = tl.zeros((GROUP,), tl.float32)
    for at in range(0, negatives, GROUP):
        index = at + tl.arange(0, GROUP)
        valid = _valid(mask, row, negatives, index)
        difference = tl.zeros((GROUP,), tl.float32)
        for first in range(0, dim, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            query = tl.load(q + row * dim + column, mask=column < dim, other=0.0).to(tl.float32)
            positive = tl.load(pos + row * dim + column, mask=column < dim, other=0.0).to(tl.float32)
            negative = _negatives(neg, row, negatives, dim, index, column, valid)
            difference += tl.sum(query[None, :] * (negative - positive[None, :]), 1)
        term, slope = softplus_and_slope(factor * difference)
        loss_sum += tl.where(valid, term, 0.0)
        if grad_q is not None:
            slope = tl.where(valid, slope / count, 0.0)
            slope_sum += slope
            scale_sum += tl.where(valid, slope * difference, 0.0)
            tl.store(slopes + row * negatives + index, slope, mask=index < negatives)
    tl.store(losses + row, tl.sum(loss_sum, 0) / count)
    if grad_q is not None:
        tl.store(grad_scales + row, tl.sum(scale_sum, 0))
        total = tl.sum(slope_sum, 0)
        # The slopes are read back by other lanes than those that stored them.
        tl.debug_barrier()
        step = factor / rows
        for first in range(0, dim, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            here = column < dim
            query = tl.load(q + row * dim + column, mask=here, other=0.0).to(tl.float32) * step
            positive = tl.load(pos + row * dim + column, mask=here, other=0.0).to(tl.float32)
            tl.store(grad_pos + row * dim + column, -total * query, mask=here)
            pulled = tl.zeros((GROUP, COLUMNS), tl.float32)
            for at in range(0, negatives, GROUP):
                index = at + tl.arange(0, GROUP)
                valid = _valid(mask, row, negatives, index)
                slope = tl.load(slopes + row * negatives + index, mask=index < negatives, other=0.0)
                negative = _negatives(neg, row, negatives, dim, index, column, valid)
                pulled += slope[:, None] * (negative - positive[None, :])
                place = (row * negatives + index)[:, None] * dim + column[None, :]
                tl.store(
                    grad_neg + place,
                    slope[:, None] * query[None, :],
                    mask=(index < negatives)[:, None] & here[None, :],
                )
            tl.store(grad_q + row * dim + column, tl.sum(pulled, 0) * step, mask=here)
    # All lanes' stores come before the count, which carries them to the program that counts last.
    tl.debug_barrier()
    if tl.atomic_add(finished, 1, sem="acq_rel", scope="gpu") == rows - 1:
        tl.store(finished, 0)  # for the next launch
        tl.store(loss, _sum_rows(losses, rows) / rows)
        if grad_q is not None:
            tl.store(grad_scale, _sum_rows(grad_scales, rows) / rows)


def compute_pairwise(
    q: Tensor, pos: Tensor, neg: Tensor, scale: Tensor | float, mask: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss (0-dim) and, if needed, its gradients in q, pos, neg and scale (0-dim), else empty: fp32, on q's device.

    q, pos: [B, D]; neg: [B, H, D]; one dtype of fp32, fp16, bf16. mask: bool [B, H] or None. scale: one element on the
    device of q or the CPU, or a number. Never waits for the device.
    """
    rows, negatives, dim = neg.shape
    q, pos, neg = q.contiguous(), pos.contiguous(), neg.contiguous()
    mask = None if mask is None else mask.contiguous()
    per_row = q.new_empty(2, rows, dtype=torch.float32)
    loss, grad_scale = (q.new_empty((), dtype=torch.float32) for _ in range(2))
    grad_q, grad_pos, grad_neg, slopes = (
        q.new_empty(shape if need_grad else 0, dtype=torch.float32)
        for shape in (q.shape, pos.shape, neg.shape, neg.shape[:2])
    )
    columns = min(TILE, triton.next_power_of_2(max(dim, 32)))
    group = min(triton.next_power_of_2(max(negatives, 1)), max(1, TILE // columns), 32)
    if rows:
        with on_device_of(q):
            pairwise_loss_kernel[(rows,)](
                q,
                pos,
                neg,
                mask,
                negatives,
                dim,
                *scale_arguments(scale, q),
                rows,
                _finished(q.device),
                *per_row,
                loss,
                grad_scale,
                *((slopes, grad_q, grad_pos, grad_neg) if need_grad else (None,) * 4),
                GROUP=group,
                COLUMNS=columns,
                num_warps=max(1, group * columns // 512),
            )
    else:
        loss.zero_(), grad_scale.zero_()
    return loss, grad_q, grad_pos, grad_neg, grad_scale if need_grad else loss.new_empty(0)


def _finished(device: torch.device) -> Tensor:
    """A counter at 0 of the programs that have finished, which each launch leaves at 0.

    Launches of one stream follow each other and share it. A captured graph has its own: it may be replayed on any
    stream, and what fills it must be in the graph.
    """
    if device.type != "cuda":
        return _counter(device, 0)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    return _counter(device, torch.cuda.current_stream(device).cuda_stream)


@functools.cache
def _counter(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)
