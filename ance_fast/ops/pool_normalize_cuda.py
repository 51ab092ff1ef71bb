"""`pool_normalize` on the GPU: the calls into the CUDA kernel (csrc/cuda/pool_normalize.h).

The same functions as in `pool_normalize_cpu`, for CUDA tensors. Nothing here waits for the device: the work is queued
on the current stream, and memory that only the kernel needs goes back to torch's allocator in the order of that stream.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.ops.pool_normalize_wiring import outputs

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


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

    hidden: [T, D] float32, float16 or bfloat16. cu_seqlens: int32 [B + 1]. weight, bias: [D]. All on one device. An
    out_dtype other than those three is converted from float32. Raises ConfigError for another dtype of hidden or D
    over 8192, RuntimeError when CUDA refuses the launch.
    """
    hidden_name, kernel_dtype = _name(hidden.dtype), out_dtype if out_dtype in _NAMES else torch.float32
    (tokens, dim), sequences = hidden.shape, cu_seqlens.shape[0] - 1
    _check_dim(dim)
    out, pooled, stats, argmax = outputs(hidden, cu_seqlens, mode, norm, kernel_dtype, save)
    if dim == 0:
        return out.to(out_dtype), pooled, stats, argmax
    # Named, so that the copies (if any) live until the kernel is queued.
    hidden, cu_seqlens = hidden.contiguous(), cu_seqlens.contiguous()
    weight, bias = _parameter(weight), _parameter(bias)
    multiprocessors = _multiprocessors(hidden.device)
    workspace_bytes = _C.pool_forward_workspace_cuda(tokens, sequences, dim, mode, multiprocessors)
    workspace = hidden.new_empty(workspace_bytes, dtype=torch.uint8) if workspace_bytes else None
    with torch.cuda.device(hidden.device):
        _C.pool_normalize_forward_cuda(
            hidden.data_ptr(),
            cu_seqlens.data_ptr(),
            tokens=tokens,
            sequences=sequences,
            dim=dim,
            mode=mode,
            norm=norm,
            hidden_dtype=hidden_name,
            out_dtype=_name(kernel_dtype),
            weight=_address(weight),
            bias=_address(bias),
            eps=eps,
            multiprocessors=multiprocessors,
            out=out.data_ptr(),
            pooled=pooled.data_ptr(),
            stats=stats.data_ptr(),
            argmax=argmax.data_ptr(),
            workspace=_address(workspace),
            workspace_bytes=workspace_bytes,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return out.to(out_dtype), pooled, stats, argmax


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

    grad_out: [B, D]; pooled, stats and argmax as `compute_pool` returned them with save; dtype: float32, float16 or
    bfloat16. `out` is not read. Raises as `compute_pool` does.
    """
    name = _name(dtype)
    if grad_out.dtype not in _NAMES:
        grad_out = grad_out.float()
    sequences, dim = grad_out.shape
    _check_dim(dim)
    grad_hidden = grad_out.new_empty((tokens, dim), dtype=dtype)
    grad_weight = grad_out.new_empty(dim if with_parameters else 0, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    if dim == 0:
        return grad_hidden, grad_weight, grad_bias
    grad_out, cu_seqlens, weight = grad_out.contiguous(), cu_seqlens.contiguous(), _parameter(weight)
    workspace_bytes = _C.pool_backward_workspace_cuda(sequences, dim, with_parameters)
    workspace = grad_out.new_empty(workspace_bytes, dtype=torch.uint8) if workspace_bytes else None
    with torch.cuda.device(grad_out.device):
        _C.pool_normalize_backward_cuda(
            grad_out.data_ptr(),
            cu_seqlens.data_ptr(),
            tokens=tokens,
            sequences=sequences,
            dim=dim,
            mode=mode,
            norm=norm,
            grad_out_dtype=_name(grad_out.dtype),
            grad_hidden_dtype=name,
            weight=_address(weight),
            pooled=pooled.data_ptr(),
            stats=stats.data_ptr(),
            argmax=argmax.data_ptr(),
            eps=eps,
            multiprocessors=_multiprocessors(grad_out.device),
            grad_hidden=grad_hidden.data_ptr(),
            grad_weight=grad_weight.data_ptr(),
            grad_bias=grad_bias.data_ptr(),
            workspace=_address(workspace),
            workspace_bytes=workspace_bytes,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return grad_hidden, grad_weight, grad_bias


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _parameter(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()


def _name(dtype: torch.dtype) -> str:
    if dtype not in _NAMES:
        raise ConfigError(f"the CUDA kernel of pool_normalize takes {', '.join(_NAMES.values())}, not {dtype}")
    return _NAMES[dtype]


def _check_dim(dim: int) -> None:
    widest = _C.pool_max_dim_cuda
    if dim > widest:
        raise ConfigError(
            f"hidden is {dim} wide; the CUDA kernel of pool_normalize takes up to {widest}: use backend='torch'"
        )
