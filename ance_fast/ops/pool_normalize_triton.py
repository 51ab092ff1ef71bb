"""`pool_normalize` and its backward pass as Triton kernels: one program a sequence, its row held in registers.

The forward pass goes through a sequence's tokens GROUP at a time and keeps GROUP partial sums (or maxima) a column,
which are combined once at the end; then the row is normalised where it is. The backward pass takes the gradient of a
row through the norm and writes it to all its tokens. Gradients of weight and bias are summed by at most PROGRAMS
programs, each over its sequences in order, and then by torch, so they do not change from run to run. Arithmetic is fp32
whatever the input and output.

FLOPs: T D. Minimal bytes: forward T D read and B D written, backward B D read and T D written, in the dtype of each.
Expected limiter: memory bandwidth. There is no matrix product here, so no tensor core. Not yet measured on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are Triton's dialect of Python, where a parameter has no Python type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.pool_normalize_wiring import outputs
from ance_fast.ops.triton_common import on_device_of

# Values of a group of tokens held in registers; also the widest row.
TILE = 16384
GROUP = 8
PROGRAMS = 1024
NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def _span(cu_seqlens, sequence, tokens):
    """First token of a sequence and the one after its last; cut, so that wrong offsets reach no memory outside."""
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    return begin, tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), begin), tokens)


@triton.jit
def _sum_tokens(hidden, begin, end, dim, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK] sum over tokens begin .. end."""
    column = tl.arange(0, BLOCK)
    sums = tl.zeros((GROUP, BLOCK), tl.float32)
    for at in range(begin, end, GROUP):
        token = at + tl.arange(0, GROUP)
        here = (token < end)[:, None] & (column < dim)[None, :]
        place = token.to(tl.int64)[:, None] * dim + column[None, :]
        sums += tl.load(hidden + place, mask=here, other=0.0).to(tl.float32)
    return tl.sum(sums, 0)


@triton.jit
def _max_tokens(hidden, begin, end, dim, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK] maximum over tokens begin .. end and the first token that has it; NaN is the largest."""
    column = tl.arange(0, BLOCK)
    best = tl.full((GROUP, BLOCK), -float("inf"), tl.float32)
    owner = tl.full((GROUP, BLOCK), NO_TOKEN, tl.int32)
    for at in range(begin, end, GROUP):
        token = at + tl.arange(0, GROUP)
        here = (token < end)[:, None] & (column < dim)[None, :]
        place = token.to(tl.int64)[:, None] * dim + column[None, :]
        x = tl.load(hidden + place, mask=here, other=0.0).to(tl.float32)
        # Tokens of a lane rise, so the first of equals stays; -inf does not exceed where `best` starts.
        larger = (x > best) | ((x != x) & (best == best)) | (owner == NO_TOKEN)
        best = tl.where(here & larger, x, best)
        owner = tl.where(here & larger, token[:, None], owner)
    nan = best != best
    any_nan = tl.max(nan.to(tl.int32), 0) > 0
    top = tl.max(tl.where(nan, -float("inf"), best), 0)
    first = tl.min(tl.where(tl.where(any_nan[None, :], nan, best == top[None, :]), owner, NO_TOKEN), 0)
    return tl.where(any_nan, float("nan"), top), first


@triton.jit(do_not_specialize=["tokens"])
def pool_forward_kernel(
    hidden,
    cu_seqlens,
    tokens,
    dim,
    weight,
    bias,
    eps,
    out,
    pooled,
    stats,
    argmax,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    begin, end = _span(cu_seqlens, sequence, tokens)
    column = tl.arange(0, BLOCK)
    within = column < dim
    # Of an empty sequence no column is there.
    there = column < tl.where(end > begin, dim, 0)
    if MODE == "mean":
        row = _sum_tokens(hidden, begin, end, dim, GROUP, BLOCK) / tl.maximum(end - begin, 1).to(tl.float32)
    elif MODE == "max":
        row, first = _max_tokens(hidden, begin, end, dim, GROUP, BLOCK)
        tl.store(argmax + sequence * dim + column, tl.where(there, first, -1), mask=within)
    else:
        token = (begin if MODE == "cls" else end - 1).to(tl.int64)
        row = tl.load(hidden + token * dim + column, mask=there, other=0.0).to(tl.float32)
    row = tl.where(there, row, 0.0)
    if pooled is not None:
        tl.store(pooled + sequence * dim + column, row, mask=within)
    if NORM == "l2":
        length = tl.sqrt_rn(tl.sum(row * row, 0))
        row = row / tl.where(length < eps, eps, length)
        first_stat, second_stat = length, 0.0
    if NORM == "layernorm":
        mean = tl.sum(row, 0) / dim
        deviation = tl.where(within, row - mean, 0.0)
        second_stat = 1 / tl.sqrt_rn(tl.sum(deviation * deviation, 0) / dim + eps)
        first_stat = mean
        row = deviation * second_stat
        if weight is not None:
            row = row * tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
        if bias is not None:
            row = row + tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
        row = tl.where(there, row, 0.0)
    if pooled is not None:
        tl.store(stats + 2 * sequence, tl.where(end > begin, first_stat, 0.0))
        tl.store(stats + 2 * sequence + 1, tl.where(end > begin, second_stat, 0.0))
    tl.store(out + sequence * dim + column, row, mask=within)


@triton.jit
def _through_norm(grad, row, first_stat, second_stat, weight, column, dim, eps, NORM: tl.constexpr):
    """Gradient in the pooled row, and the normalised row (of layernorm) that the gradient of weight needs."""
    within = column < dim
    if NORM == "none":
        return grad, grad
    if NORM == "l2":
        divisor = tl.where(first_stat < eps, eps, first_stat)
        unit = row / divisor
        # Below eps the divisor is a constant.
        along = tl.where(first_stat < eps, 0.0, tl.sum(unit * grad, 0))
        return (grad - unit * along) / divisor, unit
    unit = tl.where(within, (row - first_stat) * second_stat, 0.0)
    if weight is not None:
        grad = grad * tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    inner = grad - tl.sum(grad, 0) / dim - unit * (tl.sum(grad * unit, 0) / dim)
    return inner * second_stat, unit


@triton.jit(do_not_specialize=["tokens"])
def pool_backward_kernel(
    grad_out,
    cu_seqlens,
    tokens,
    sequences,
    dim,
    weight,
    eps,
    pooled,
    stats,
    argmax,
    grad_hidden,
    weight_parts,
    bias_parts,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    within = column < dim
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    bias_sum = tl.zeros((BLOCK,), tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for others in range(0, sequences - program, tl.num_programs(0)):
        sequence = program + others
        begin, end = _span(cu_seqlens, sequence, tokens)
        # An empty sequence has no gradient, whatever stands in grad_out.
        there = column < tl.where(end > begin, dim, 0)
        grad = tl.load(grad_out + sequence * dim + column, mask=there, other=0.0).to(tl.float32)
        row, first_stat, second_stat = grad, 0.0, 0.0
        if NORM != "none":
            row = tl.load(pooled + sequence * dim + column, mask=there, other=0.0)
            first_stat, second_stat = tl.load(stats + 2 * sequence), tl.load(stats + 2 * sequence + 1)
        inner, unit = _through_norm(grad, row, first_stat, second_stat, weight, column, dim, eps, NORM)
        weight_sum += grad * unit
        bias_sum += grad
        if MODE == "mean":
            inner = inner / tl.maximum(end - begin, 1).to(tl.float32)
        elif MODE == "max":
            owner = tl.load(argmax + sequence * dim + column, mask=within, other=-1)
        elif MODE == "cls":
            owner = begin + tl.zeros((BLOCK,), tl.int32)
        else:
            owner = end - 1 + tl.zeros((BLOCK,), tl.int32)
        for at in range(begin, end, GROUP):
            token = at + tl.arange(0, GROUP)
            if MODE == "mean":
                block = tl.broadcast_to(inner[None, :], (GROUP, BLOCK))
            else:
                block = tl.where(token[:, None] == owner[None, :], inner[None, :], 0.0)
            place = token.to(tl.int64)[:, None] * dim + column[None, :]
            tl.store(grad_hidden + place, block, mask=(token < end)[:, None] & within[None, :])
    if weight_parts is not None:
        place = program * dim + column
        tl.store(weight_parts + place, weight_sum, mask=within)
        tl.store(bias_parts + place, bias_sum, mask=within)


def compute_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mode: str,
    norm: str,
    eps: float,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result [B, D], and for the backward pass (empty where unused): pooled [B, D], stats [B, 2], argmax int32 [B, D].

    hidden: [T, D], weight and bias [D], out_dtype: fp32, fp16 or bf16, each its own. cu_seqlens: int32 [B + 1]; never
    waits for the device, so offsets that do not rise from 0 to T are cut to it. ConfigError for D over TILE.
    """
    block, group, warps = _shape_of(hidden.shape[1])
    out, pooled, stats, argmax = outputs(hidden, cu_seqlens, mode, norm, out_dtype, save)
    kept = pooled.shape[0] > 0
    if out.numel():
        with on_device_of(hidden):
            pool_forward_kernel[(out.shape[0],)](
                hidden.contiguous(),
                cu_seqlens.contiguous(),
                hidden.shape[0],
                hidden.shape[1],
                None if weight is None else weight.contiguous(),
                None if bias is None else bias.contiguous(),
                eps,
                out,
                pooled if kept else None,
                stats if kept else None,
                argmax if mode == "max" else None,
                MODE=mode,
                NORM=norm,
                GROUP=group,
                BLOCK=block,
                num_warps=warps,
            )
    return out, pooled, stats, argmax


def compute_pool_backward(
    grad_out: Tensor,
    cu_seqlens: Tensor,
    weight: Tensor | None,
    out: Tensor,
    pooled: Tensor,
    stats: Tensor,
    argmax: Tensor,
    mode: str,
    norm: str,
    eps: float,
    tokens: int,
    with_parameters: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients: of hidden [T, D] in `dtype`, and fp32 of weight and bias [D] (empty unless with_parameters).

    grad_out: [B, D] fp32, fp16 or bf16; pooled, stats and argmax as `compute_pool` returned them with save; `out` is
    not read. with_parameters belongs to norm="layernorm". Every element of the gradients is written.
    """
    sequences, dim = grad_out.shape
    block, group, warps = _shape_of(dim)
    grad_hidden = grad_out.new_empty((tokens, dim), dtype=dtype)
    programs = min(sequences, PROGRAMS) if with_parameters else sequences
    parts = grad_out.new_empty((2, programs, dim if with_parameters else 0), dtype=torch.float32)
    if sequences and dim:
        with on_device_of(grad_out):
            pool_backward_kernel[(programs,)](
                grad_out.contiguous(),
                cu_seqlens.contiguous(),
                tokens,
                sequences,
                dim,
                None if weight is None else weight.contiguous(),
                eps,
                pooled if norm != "none" else None,
                stats if norm != "none" else None,
                argmax if mode == "max" else None,
                grad_hidden,
                *(parts if with_parameters else (None, None)),
                MODE=mode,
                NORM=norm,
                GROUP=group,
                BLOCK=block,
                num_warps=warps,
            )
    grad_weight, grad_bias = (part.sum(0) for part in parts)
    return grad_hidden, grad_weight, grad_bias


def _shape_of(dim: int) -> tuple[int, int, int]:
    """Columns a program holds, tokens it takes at a time, and its warps."""
    block = triton.next_power_of_2(max(dim, 1))
    if block > TILE:
        raise ConfigError(
            f"hidden is {dim} wide; the Triton kernel of pool_normalize takes up to {TILE}: use backend='torch'"
        )
    block = max(block, 32)
    group = min(GROUP, max(1, TILE // block))
    return block, group, min(16, max(1, group * block // 1024))
