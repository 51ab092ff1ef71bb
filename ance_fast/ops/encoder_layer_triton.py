"""What surrounds the matrix products of an encoder layer at inference, as Triton kernels for fp32, fp16 and bf16.

    embed_layernorm_kernel          out [T, D] = layernorm(words[ids] + positions[places] + constant)
    bias_residual_layernorm_kernel  x [T, D] <- layernorm(x + bias + residual)
    bias_gelu_kernel                x [T, F] <- gelu(x + bias), exact (erf) form

A program holds some whole rows in registers (of GELU: a tile), so every element is read and written once. Arithmetic
is fp32 whatever the dtype; the variance is that of deviations from the mean, not a difference of squares.

Bytes, of element size s: embedding 3 T D s (and 16 T of ids), residual 3 T D s, GELU 2 T F s. FLOPs: about 8 T D and,
with the error function, 25 T F. Expected limiter: memory bandwidth. Not yet measured on a GPU.

A GELU inside the product that feeds it would save 2 T F s bytes: at D = 768, F = 3,072 in bf16 a product of
2 T D F = 4.7 MFLOP a token takes 6 ns at 790 TFLOP/s, and this kernel 2.9 ns at 4.3 TB/s where x is no longer in the
L2 cache. cuBLAS has only the tanh form as an epilogue, which is another function.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are Triton's dialect of Python, where a parameter has no Python type.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.triton_common import on_device_of

# Values that a program of four warps holds, and the widest row.
TILE = 4096
WIDEST = 16384
GELU_BLOCK = 1024
HALF_SQRT2 = tl.constexpr(0.7071067811865476)


@triton.jit
def _layernorm(rows, weight, shift, column, dim, eps):
    """layernorm of rows [ROWS, BLOCK] in fp32 that are `dim` wide; what stands beyond does not count."""
    within = column < dim
    mean = tl.sum(tl.where(within[None, :], rows, 0.0), 1) / dim
    deviation = tl.where(within[None, :], rows - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt_rn(tl.sum(deviation * deviation, 1) / dim + eps)
    scale = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=within, other=0.0).to(tl.float32)
    return deviation * inverse[:, None] * scale[None, :] + offset[None, :]


@triton.jit(do_not_specialize=["tokens", "vocabulary", "longest"])
def embed_layernorm_kernel(
    input_ids,
    position_ids,
    words,
    positions,
    constant,
    weight,
    shift,
    out,
    tokens,
    vocabulary,
    longest,
    dim,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    within = (column < dim)[None, :]
    word = tl.load(input_ids + token, mask=token < tokens, other=0).to(tl.int64)
    place = tl.load(position_ids + token, mask=token < tokens, other=0).to(tl.int64)
    # An id that a table does not have reaches no memory outside; its row is NaN.
    known = ((word >= 0) & (word < vocabulary) & (place >= 0) & (place < longest))[:, None]
    rows = tl.load(words + word[:, None] * dim + column[None, :], mask=known & within, other=0.0).to(tl.float32)
    rows += tl.load(positions + place[:, None] * dim + column[None, :], mask=known & within, other=0.0).to(tl.float32)
    rows += tl.load(constant + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
    rows = tl.where(known, rows, float("nan"))
    rows = _layernorm(rows, weight, shift, column, dim, eps)
    tl.store(out + token[:, None] * dim + column[None, :], rows, mask=(token < tokens)[:, None] & within)


@triton.jit(do_not_specialize=["tokens"])
def bias_residual_layernorm_kernel(
    x, bias, residual, weight, shift, tokens, dim, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    here = (token < tokens)[:, None] & (column < dim)[None, :]
    place = token[:, None] * dim + column[None, :]
    rows = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    rows += tl.load(residual + place, mask=here, other=0.0).to(tl.float32)
    rows += tl.load(bias + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
    tl.store(x + place, _layernorm(rows, weight, shift, column, dim, eps), mask=here)


@triton.jit(do_not_specialize=["tokens"])
def bias_gelu_kernel(x, bias, tokens, dim, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = (token < tokens)[:, None] & (column < dim)[None, :]
    place = token[:, None] * dim + column[None, :]
    value = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=column < dim, other=0.0).to(tl.float32)[None, :]
    tl.store(x + place, 0.5 * value * (1 + tl.erf(value * HALF_SQRT2)), mask=here)


def embed_layernorm(
    input_ids: Tensor,
    position_ids: Tensor,
    words: Tensor,
    positions: Tensor,
    constant: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    out: Tensor,
) -> Tensor:
    """Into out [T, D]: layernorm(words[input_ids] + positions[position_ids] + constant) * weight + shift.

    Ids int64 or int32 [T]; tables [V, D] and [P, D]. Never waits for the device: an id that is in no table gives a row
    of NaN. ConfigError for D over WIDEST, here and below.
    """
    tokens, dim = out.shape
    rows, block, warps = _shape_of(dim)
    if tokens:
        with on_device_of(out):
            embed_layernorm_kernel[(triton.cdiv(tokens, rows),)](
                input_ids.contiguous(),
                position_ids.contiguous(),
                words.contiguous(),
                positions.contiguous(),
                constant,
                weight,
                shift,
                _contiguous("out", out),
                tokens,
                len(words),
                len(positions),
                dim,
                eps,
                ROWS=rows,
                BLOCK=block,
                num_warps=warps,
            )
    return out


def bias_residual_layernorm(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> Tensor:
    """x [T, D] <- layernorm(x + bias + residual) * weight + shift."""
    tokens, dim = x.shape
    rows, block, warps = _shape_of(dim)
    if tokens:
        with on_device_of(x):
            bias_residual_layernorm_kernel[(triton.cdiv(tokens, rows),)](
                _contiguous("x", x),
                bias,
                residual.contiguous(),
                weight,
                shift,
                tokens,
                dim,
                eps,
                ROWS=rows,
                BLOCK=block,
                num_warps=warps,
            )
    return x


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """x [T, F] <- gelu(x + bias)."""
    tokens, dim = x.shape
    block = min(GELU_BLOCK, max(32, triton.next_power_of_2(dim)))
    rows = TILE // block
    if tokens:
        with on_device_of(x):
            bias_gelu_kernel[(triton.cdiv(tokens, rows), triton.cdiv(dim, block))](
                _contiguous("x", x), bias, tokens, dim, ROWS=rows, BLOCK=block, num_warps=4
            )
    return x


def _contiguous(name: str, x: Tensor) -> Tensor:
    """What is written in place cannot be replaced by a contiguous copy."""
    if not x.is_contiguous():
        raise ConfigError(f"{name} is written in place and must be contiguous, got strides {x.stride()}")
    return x


def _shape_of(dim: int) -> tuple[int, int, int]:
    """Rows of a program, columns of a row, and warps."""
    block = max(32, triton.next_power_of_2(dim))
    if block > WIDEST:
        raise ConfigError(f"rows are {dim} wide; the Triton kernels take up to {WIDEST}: use backend='torch'")
    return max(1, TILE // block), block, max(4, block // 1024)
