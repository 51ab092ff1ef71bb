"""The Triton kernels around an encoder's products against float64; without a GPU Triton's interpreter runs them."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops import encoder_layer as layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
assert DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before triton is imported"

from ance_fast.ops import encoder_layer_triton as kernels  # noqa: E402

# The interpreter computes bf16 wrongly even in casts; on a GPU it is tested like the others.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
ROWS = st.sampled_from([0, 1, 3, 9, 130])
WIDTHS = st.sampled_from([1, 33, 384, 768, 1024])


def values(seed: int, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE, dtype)


def check(found: Tensor, expected: Tensor, slack: float = 1e-5) -> None:
    """Rounding to the dtype once, and fp32 arithmetic."""
    allowed = torch.finfo(found.dtype).eps * expected.abs() + slack * (1 + expected.abs())
    assert ((found.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12, deadline=None)
@given(rows=ROWS, dim=WIDTHS, scale=st.floats(0.1, 30))
def test_residual_layernorm_equals_the_reference(dtype: torch.dtype, rows: int, dim: int, scale: float) -> None:
    x, residual = values(0, rows, dim, dtype=dtype, scale=scale), values(1, rows, dim, dtype=dtype)
    bias, weight, shift = (values(seed, dim, dtype=dtype) for seed in (2, 3, 4))
    wide = [part.double() for part in (x, bias, residual, weight, shift)]
    expected = layer.bias_residual_layernorm_reference(*wide, 1e-5)
    assert layer.bias_residual_layernorm_(x, bias, residual, weight, shift, 1e-5, backend="triton") is x
    check(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12, deadline=None)
@given(rows=ROWS, dim=WIDTHS, scale=st.floats(0.01, 30))
def test_gelu_equals_the_reference(dtype: torch.dtype, rows: int, dim: int, scale: float) -> None:
    x, bias = values(0, rows, dim, dtype=dtype, scale=scale), values(1, dim, dtype=dtype)
    expected = layer.bias_gelu_reference(x.double(), bias.double())
    assert layer.bias_gelu_(x, bias, backend="triton") is x
    check(x, expected, slack=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12, deadline=None)
@given(rows=ROWS, dim=WIDTHS, ids=st.sampled_from([torch.int64, torch.int32]))
def test_embedding_equals_the_reference(dtype: torch.dtype, rows: int, dim: int, ids: torch.dtype) -> None:
    words, positions = values(0, 50, dim, dtype=dtype), values(1, 20, dim, dtype=dtype)
    vectors = [values(seed, dim, dtype=dtype) for seed in (2, 3, 4)]
    draw = torch.Generator().manual_seed(rows)
    word, place = (torch.randint(0, most, (rows,), generator=draw).to(DEVICE, ids) for most in (50, 20))
    wide = [part.double() for part in (words, positions, *vectors)]
    expected = layer.embed_layernorm_reference(word, place, *wide, 1e-5)
    out = torch.full((rows, dim), torch.nan, device=DEVICE, dtype=dtype)
    assert layer.embed_layernorm(word, place, words, positions, *vectors, 1e-5, out=out, backend="triton") is out
    check(out, expected)


def test_an_id_outside_its_table_gives_a_row_of_nan_and_touches_no_other() -> None:
    words, positions, ones = values(0, 5, 33), values(1, 4, 33), torch.ones(33, device=DEVICE)
    word = torch.tensor([0, 5, -1, 4, 1, 1], device=DEVICE)
    place = torch.tensor([0, 0, 0, 3, 4, -1], device=DEVICE)
    found = layer.embed_layernorm(word, place, words, positions, ones, ones, ones, 1e-5, backend="triton")
    assert found.isnan().all(1).tolist() == [False, True, True, False, True, True]
    good = torch.tensor([0, 3], device=DEVICE)
    tables = [part.double() for part in (words, positions, ones, ones, ones)]
    check(found[good], layer.embed_layernorm_reference(word[good], place[good], *tables, 1e-5))


def test_layernorm_keeps_its_accuracy_far_from_zero() -> None:
    # The difference of squares would leave nothing of a variance of 1 beside a mean of 3000.
    x, zeros, ones = values(0, 5, 384) + 3000, torch.zeros(384, device=DEVICE), torch.ones(384, device=DEVICE)
    expected = torch.nn.functional.layer_norm(x.double(), (384,))
    layer.bias_residual_layernorm_(x, zeros, torch.zeros_like(x), ones, zeros, 1e-12, backend="triton")
    check(x, expected, slack=1e-3)


def test_half_precision_is_summed_in_fp32() -> None:
    # The sum of these is 12 times the largest half.
    x, zeros, ones = (torch.full((3, 768), fill, device=DEVICE).half() for fill in (1000.0, 0.0, 1.0))
    x[:, ::2] = 1100
    expected = torch.nn.functional.layer_norm(x.double(), (768,))
    check(layer.bias_residual_layernorm_(x, zeros[0], zeros, ones[0], zeros[0], 1e-5, backend="triton"), expected)


def test_gelu_keeps_its_limits() -> None:
    x = torch.tensor([[-1e30, -100.0, -10.0, -0.0, 0.0, 1e-30, 10.0, 1e30, torch.nan]], device=DEVICE)
    found = kernels.bias_gelu(x.clone(), torch.zeros(9, device=DEVICE))
    torch.testing.assert_close(found, torch.nn.functional.gelu(x), atol=1e-30, rtol=1e-6, equal_nan=True)


def test_only_the_rows_given_are_written() -> None:
    room, bias = torch.full((9, 48), 7.0, device=DEVICE), torch.ones(48, device=DEVICE)
    kernels.bias_gelu(room[:5], bias)
    kernels.bias_residual_layernorm(room[:5], bias, torch.ones_like(room[:5]), bias, bias, 1e-5)
    assert (room[5:] == 7).all()
    assert (room[:5] != 7).all()


def test_what_is_written_in_place_must_be_contiguous() -> None:
    x, ones = torch.ones(4, 64, device=DEVICE)[:, :32], torch.ones(32, device=DEVICE)
    with pytest.raises(ConfigError, match=r"x is written in place and must be contiguous, got strides \(64, 1\)"):
        kernels.bias_gelu(x, ones)
    with pytest.raises(ConfigError, match="must be contiguous"):
        kernels.bias_residual_layernorm(x, ones, x, ones, ones, 1e-5)


def test_rows_wider_than_a_program_are_refused() -> None:
    x, ones = torch.ones(1, 16385, device=DEVICE), torch.ones(16385, device=DEVICE)
    with pytest.raises(ConfigError, match="rows are 16385 wide; the Triton kernels take up to 16384"):
        kernels.bias_residual_layernorm(x, ones, x, ones, ones, 1e-5)
