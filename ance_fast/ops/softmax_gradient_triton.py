"""The softmax between the products of `contrastive_loss` on a GPU: Triton kernels, one program a row.

Same functions as softmax_gradient_torch, which is the specification. `gradient` takes a block of rows with all their
columns in one launch; a row of at most SINGLE_BLOCK columns stays in registers between the reduction and the gradient,
a longer one is read twice. `statistics`, `finish` and `tile_gradient` do the same when a row's columns come in tiles
that are never there together, and share its device functions. None waits for the device: how many targets a block has
is known there alone, so what they keep for each target is as long as the list of the whole batch.

Hidden columns, targets and masked ones, are set to -inf in the logits before the row is reduced: a mask would
be as long as the logits, the lists have a few entries a row. So the logits are overwritten in any case. A row's maximum
and sum are kept apart instead of their logsumexp, which fp32 rounds by up to 3e-5 where scores are near 700.

FLOPs: about 10 a logit, one exponential among them (two for rows that are read twice). Minimal bytes a logit: 4 read
and 2 (bf16, fp16) or 4 (fp32) written; without gradient 4. Expected limiter: L2 bandwidth while the chunk stays there,
else HBM. There is no matrix product here, so no tensor core. Every sum has a fixed order and nothing is added
atomically: results are bitwise reproducible. Not yet measured on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are Triton's dialect of Python, where a parameter has no Python type.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ance_fast.ops.contrastive_problem import Problem
from ance_fast.ops.loss_wiring import workspace_gain
from ance_fast.ops.triton_common import LOG2E, on_device_of, scale_arguments, scale_value, softplus_and_slope

# 1024 threads hold 32 fp32 values each; twice that would spill.
SINGLE_BLOCK = 32768
LOOP_BLOCK = 8192
# Fewer, and rows of slightly different width would each compile a kernel of their own.
SMALLEST_BLOCK = 128
# A warp holds one target a lane, so that sums over targets need no other warp.
TARGETS = tl.constexpr(32)
# Keys of a row and columns of a key looked up at once: rows with a few known positives are done in one round trip.
KEYS = tl.constexpr(16)
RUN = tl.constexpr(8)


@triton.jit
def _keep_targets(row_logits, scale, begin, end, target_columns, target_logits, first, width, FRESH: tl.constexpr):
    """Store the scaled logits of the targets among columns first .. first + width, before they are hidden.

    The first tile, which may be all columns, gives the others NaN: the loss then shows a target that is in no tile.
    """
    for at in range(begin, end, TARGETS):
        index = at + tl.arange(0, TARGETS)
        column = tl.load(target_columns + index, mask=index < end, other=0) - first
        here = (index < end) & (column >= 0) & (column < width)
        logit = tl.load(row_logits + column, mask=here, other=0.0)
        if FRESH:
            tl.store(target_logits + index, tl.where(here, logit * scale, float("nan")), mask=index < end)
        else:
            tl.store(target_logits + index, logit * scale, mask=here)


@triton.jit
def _hide(row_logits, row, begin, end, target_columns, mask_offsets, mask_keys, key_offsets, key_columns, first, width):
    """Set the row's targets and masked columns among first .. first + width to -inf."""
    for at in range(begin, end, TARGETS):
        index = at + tl.arange(0, TARGETS)
        column = tl.load(target_columns + index, mask=index < end, other=0) - first
        tl.store(row_logits + column, -float("inf"), mask=(index < end) & (column >= 0) & (column < width))
    if mask_offsets is not None:
        last_key = tl.load(mask_offsets + row + 1)
        for at in range(tl.load(mask_offsets + row), last_key, KEYS):
            index = at + tl.arange(0, KEYS)
            key = tl.load(mask_keys + index, mask=index < last_key, other=0)
            start = tl.load(key_offsets + key, mask=index < last_key, other=0)
            stop = tl.load(key_offsets + key + 1, mask=index < last_key, other=0)
            for step in range(0, tl.max(stop - start, 0), RUN):
                place = (start + step)[:, None] + tl.arange(0, RUN)[None, :]
                listed = place < stop[:, None]
                column = tl.load(key_columns + place, mask=listed, other=0) - first
                tl.store(row_logits + column, -float("inf"), mask=listed & (column >= 0) & (column < width))


@triton.jit
def _scores(row_logits, column, width, scale):
    logit = tl.load(row_logits + column, mask=column < width, other=-float("inf"))
    # A hidden column stays hidden whatever the scale: -inf * 0 would be NaN, -inf * -1 the maximum.
    return tl.where(logit == -float("inf"), logit, logit * scale)


@triton.jit
def _exponentials(score, highest):
    """exp(score - highest), 0 where both are -inf. Subtracting first keeps the error relative to the difference."""
    return tl.exp2((score - tl.where(highest == -float("inf"), 0.0, highest)) * LOG2E)


@triton.jit
def _nothing():
    """Maximum and sum of no columns."""
    return tl.full((), -float("inf"), tl.float32), tl.full((), 0.0, tl.float32)


@triton.jit
def _reduce(row_logits, width, scale, highest, total, BLOCK: tl.constexpr):
    """Maximum of the row's columns 0 .. width and the sum of exp(score - maximum), block by block, after those that
    `highest` and `total` stand for."""
    for at in range(0, width, BLOCK):
        score = _scores(row_logits, at + tl.arange(0, BLOCK), width, scale)
        higher = tl.maximum(highest, tl.max(score, 0))
        total = total * _exponentials(highest, higher) + tl.sum(_exponentials(score, higher), 0)
        highest = higher
    return highest, total


@triton.jit
def _write_negatives(row_logits, row_gradient, width, scale, highest, weight, GAIN: tl.constexpr, BLOCK: tl.constexpr):
    for at in range(0, width, BLOCK):
        column = at + tl.arange(0, BLOCK)
        block = _exponentials(_scores(row_logits, column, width, scale), highest) * (weight * GAIN)
        tl.store(row_gradient + column, block, mask=column < width)


@triton.jit
def _finish_row(begin, end, target_logits, slopes, highest, total):
    """Loss of the row, and the factor from exp(score - highest) to the gradient of a negative; 0 without targets.

    Stores each target's slope, the negative derivative of the loss in its logit.
    """
    losses = tl.zeros((TARGETS,), tl.float32)
    weights = tl.zeros((TARGETS,), tl.float32)
    # A row without negatives has highest -inf, so what stands in for log(0) does not matter.
    divisor = tl.where(total == 0, 1.0, total)
    for at in range(begin, end, TARGETS):
        index = at + tl.arange(0, TARGETS)
        logit = tl.load(target_logits + index, mask=index < end, other=0.0)
        loss, slope = softplus_and_slope((highest - logit) + tl.log(divisor))
        slope = slope / (end - begin).to(tl.float32)
        tl.store(slopes + index, slope, mask=index < end)
        losses += tl.where(index < end, loss, 0.0)
        weights += tl.where(index < end, slope, 0.0)
    return tl.sum(losses, 0) / tl.maximum(end - begin, 1).to(tl.float32), tl.sum(weights, 0) / divisor


@triton.jit
def _write_targets(row_gradient, begin, end, target_columns, slopes, first, width, GAIN: tl.constexpr):
    """Gradient at the targets among columns first .. first + width.

    Each entry stores the whole gradient of its column, so entries with the same column store the same value and need
    neither atomics nor an order.
    """
    for at in range(begin, end, TARGETS):
        index = at + tl.arange(0, TARGETS)
        column = tl.load(target_columns + index, mask=index < end, other=0)
        slope = tl.load(slopes + index, mask=index < end, other=0.0)
        times = tl.zeros((TARGETS,), tl.float32)
        for other_at in range(begin, end, TARGETS):
            other = other_at + tl.arange(0, TARGETS)
            other_column = tl.load(target_columns + other, mask=other < end, other=-1)
            times += tl.sum((column[:, None] == other_column[None, :]).to(tl.float32), 1)
        here = (index < end) & (column >= first) & (column < first + width)
        tl.store(row_gradient + (column - first), -slope * times * GAIN, mask=here)


@triton.jit
def softmax_gradient_kernel(
    logits,
    row_stride,
    columns,
    scale,
    SCALE_IN_MEMORY: tl.constexpr,
    target_offsets,
    target_columns,
    mask_offsets,
    mask_keys,
    key_offsets,
    key_columns,
    target_logits,
    slopes,
    losses,
    gradient,
    gradient_stride,
    GAIN: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * row_stride
    begin, end = tl.load(target_offsets + row), tl.load(target_offsets + row + 1)
    factor = scale_value(scale, SCALE_IN_MEMORY)
    _keep_targets(row_logits, factor, begin, end, target_columns, target_logits, 0, columns, True)
    # The lanes that hide a column are not those that read it.
    tl.debug_barrier()
    _hide(row_logits, row, begin, end, target_columns, mask_offsets, mask_keys, key_offsets, key_columns, 0, columns)
    tl.debug_barrier()
    if SINGLE:
        score = _scores(row_logits, tl.arange(0, BLOCK), columns, factor)
        highest = tl.max(score, 0)
        unnormalized = _exponentials(score, highest)
        total = tl.sum(unnormalized, 0)
    else:
        highest, total = _nothing()
        highest, total = _reduce(row_logits, columns, factor, highest, total, BLOCK)
    loss, weight = _finish_row(begin, end, target_logits, slopes, highest, total)
    tl.store(losses + row, loss)
    if gradient is not None:
        row_gradient = gradient + row * gradient_stride
        if SINGLE:
            tl.store(
                row_gradient + tl.arange(0, BLOCK), unnormalized * (weight * GAIN), mask=tl.arange(0, BLOCK) < columns
            )
        else:
            _write_negatives(row_logits, row_gradient, columns, factor, highest, weight, GAIN, BLOCK)
        tl.debug_barrier()
        _write_targets(row_gradient, begin, end, target_columns, slopes, 0, columns, GAIN)


@triton.jit(do_not_specialize=["first"])
def tile_statistics_kernel(
    logits,
    row_stride,
    width,
    first,
    scale,
    SCALE_IN_MEMORY: tl.constexpr,
    target_offsets,
    target_columns,
    mask_offsets,
    mask_keys,
    key_offsets,
    key_columns,
    target_logits,
    highests,
    totals,
    FRESH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * row_stride
    begin, end = tl.load(target_offsets + row), tl.load(target_offsets + row + 1)
    factor = scale_value(scale, SCALE_IN_MEMORY)
    _keep_targets(row_logits, factor, begin, end, target_columns, target_logits, first, width, FRESH)
    tl.debug_barrier()
    _hide(row_logits, row, begin, end, target_columns, mask_offsets, mask_keys, key_offsets, key_columns, first, width)
    tl.debug_barrier()
    highest, total = _nothing()
    if not FRESH:
        highest, total = tl.load(highests + row), tl.load(totals + row)
    highest, total = _reduce(row_logits, width, factor, highest, total, BLOCK)
    tl.store(highests + row, highest)
    tl.store(totals + row, total)


@triton.jit
def finish_kernel(target_offsets, target_logits, slopes, highests, totals, losses):
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(target_offsets + row), tl.load(target_offsets + row + 1)
    loss, weight = _finish_row(begin, end, target_logits, slopes, tl.load(highests + row), tl.load(totals + row))
    tl.store(losses + row, loss)
    tl.store(totals + row, weight)


@triton.jit(do_not_specialize=["first"])
def tile_gradient_kernel(
    logits,
    row_stride,
    width,
    first,
    scale,
    SCALE_IN_MEMORY: tl.constexpr,
    target_offsets,
    target_columns,
    mask_offsets,
    mask_keys,
    key_offsets,
    key_columns,
    highests,
    weights,
    slopes,
    gradient,
    gradient_stride,
    GAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits, row_gradient = logits + row * row_stride, gradient + row * gradient_stride
    begin, end = tl.load(target_offsets + row), tl.load(target_offsets + row + 1)
    _hide(row_logits, row, begin, end, target_columns, mask_offsets, mask_keys, key_offsets, key_columns, first, width)
    tl.debug_barrier()
    highest, weight = tl.load(highests + row), tl.load(weights + row)
    factor = scale_value(scale, SCALE_IN_MEMORY)
    _write_negatives(row_logits, row_gradient, width, factor, highest, weight, GAIN, BLOCK)
    tl.debug_barrier()
    _write_targets(row_gradient, begin, end, target_columns, slopes, first, width, GAIN)


def gradient(
    logits: Tensor,
    scale: Tensor | float,
    problem: Problem,
    kept: Tensor,
    losses: Tensor,
    need: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Write the losses [R] of a block of rows with all their columns, and return P - onehot [R, N] if needed.

    logits: fp32 [R, N], rows contiguous, any row stride: inner products not yet multiplied by `scale`. Overwritten.
    scale: one element on the device of logits or the CPU, or a number. kept: fp32 [2, targets of the whole batch]. out:
    fp32, fp16 or bf16 [R, N], rows contiguous, where P - onehot goes, without the factors `scale` and 1 / B but with
    `workspace_gain`; default over `logits`.

    A row without targets has loss 0 and gradient 0; one without negatives loss 0. Row strides that are multiples of 16
    give 16-byte accesses. Never waits for the device, so it cannot check a list: columns and keys must be in range.
    """
    rows, columns = logits.shape
    work = logits if out is None else out
    if rows == 0 or columns == 0:
        losses.zero_()
        return work
    block = triton.next_power_of_2(columns)
    single = block <= SINGLE_BLOCK
    block = max(SMALLEST_BLOCK, block) if single else LOOP_BLOCK
    with on_device_of(logits):
        softmax_gradient_kernel[(rows,)](
            logits,
            logits.stride(0),
            columns,
            *scale_arguments(scale, logits),
            *_lists(problem),
            *kept.unbind(),
            losses,
            work if need else None,
            work.stride(0),
            GAIN=workspace_gain(work.dtype),
            SINGLE=single,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return work


def statistics(
    logits: Tensor,
    scale: Tensor | float,
    problem: Problem,
    kept: Tensor,
    top: Tensor,
    total: Tensor,
    column_begin: int,
    fresh: bool,
) -> None:
    """Take a tile of columns, which is used up, into the block's statistics: largest [R] and sum of exp(s - largest)
    [R] of the negatives seen so far, and the scaled logits of its targets. `fresh`: it is the first tile.

    logits: fp32 [R, W], rows contiguous: inner products with columns column_begin .. column_begin + W, W > 0; scale and
    kept as for `gradient`; the columns of problem are counted over all tiles.
    """
    rows, width = logits.shape
    if rows == 0:
        return
    with on_device_of(logits):
        tile_statistics_kernel[(rows,)](
            logits,
            logits.stride(0),
            width,
            column_begin,
            *scale_arguments(scale, logits),
            *_lists(problem),
            kept[0],
            top,
            total,
            FRESH=fresh,
            BLOCK=_tile_block(width),
            num_warps=_warps(_tile_block(width)),
        )


def finish(top: Tensor, total: Tensor, problem: Problem, kept: Tensor, losses: Tensor) -> None:
    """From a block's statistics over all tiles: losses [R], slopes of its targets, and over `total` the factor from
    exp(s - top) to the gradient of a negative."""
    if top.shape[0]:
        with on_device_of(top):
            finish_kernel[(top.shape[0],)](problem.targets[0], *kept.unbind(), top, total, losses, num_warps=1)


def tile_gradient(
    logits: Tensor,
    scale: Tensor | float,
    problem: Problem,
    kept: Tensor,
    top: Tensor,
    factor: Tensor,
    column_begin: int,
    out: Tensor | None = None,
) -> Tensor:
    """P - onehot over a tile of logits computed anew, or in `out` [R, W] as for `gradient`."""
    rows, width = logits.shape
    work = logits if out is None else out
    if rows and width:
        with on_device_of(logits):
            tile_gradient_kernel[(rows,)](
                logits,
                logits.stride(0),
                width,
                column_begin,
                *scale_arguments(scale, logits),
                *_lists(problem),
                top,
                factor,
                kept[1],
                work,
                work.stride(0),
                GAIN=workspace_gain(work.dtype),
                BLOCK=_tile_block(width),
                num_warps=_warps(_tile_block(width)),
            )
    return work


def _lists(problem: Problem) -> tuple[Tensor | None, ...]:
    masks = problem.masks
    return (*problem.targets, *((None,) * 4 if masks is None else (*masks.hidden, *masks.holders)))


def _tile_block(width: int) -> int:
    return min(LOOP_BLOCK, max(SMALLEST_BLOCK, triton.next_power_of_2(width)))


def _warps(block: int) -> int:
    """32 values a thread in the widest blocks, and enough warps to hide latency in the narrow ones."""
    return min(32, max(4, block // 1024))
