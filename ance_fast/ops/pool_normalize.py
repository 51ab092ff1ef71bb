"""Pooling of packed token rows, the ANCE head, and normalisation of the pooled rows.

`pool_normalize_reference` is the specification. On the CPU the op runs the C++ kernel (csrc/pool_normalize.h), which
reads the hidden states once, on a GPU the CUDA kernel (csrc/cuda/) or else the Triton one. Their backward pass needs
the pooled rows alone, so no activation of size [T, D] is kept for it.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.dispatch import dispatch
from ance_fast.ops.interchange import as_optional_tensor, as_tensor
from ance_fast.ops.pool_normalize_wiring import run_pool

MODES = ("mean", "cls", "last", "max")
NORMS = ("none", "l2", "layernorm")


def pool_normalize(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: str = "mean",
    norm: str = "l2",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """One vector a sequence: pool its tokens, then normalise.

    hidden: [T, D] packed token rows, any float dtype; sums are fp32 (fp64 for fp64).
    cu_seqlens: int32 [B + 1] on the device of hidden; sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].
    mode: "mean"; "cls", the first token; "last", the last token; "max" over tokens per column (the first of equals gets
        the gradient).
    norm: "none"; "l2", x / max(|x|, eps) as torch.nn.functional.normalize; "layernorm" with weight and bias [D]
        (default ones and zeros).
    out_dtype: dtype of the result; default that of hidden.
    All of them may be arrays of other libraries (`interchange.as_tensor`), taken without a copy.

    Returns [B, D]. An empty sequence gives a row of zeros whatever the norm, and no gradient. Differentiable once in
    hidden, weight and bias (backend="reference": any number of times). Raises ConfigError for wrong shapes, dtypes or
    settings. Offsets that do not rise from 0 to T raise it on the CPU; on a GPU, where a look at them would wait for
    the device, the kernels cut them to that range.
    """
    hidden, cu_seqlens = as_tensor("hidden", hidden), as_tensor("cu_seqlens", cu_seqlens)
    weight, bias = as_optional_tensor("weight", weight), as_optional_tensor("bias", bias)
    _check(hidden, cu_seqlens, mode, norm, weight, bias, eps)
    out_dtype = out_dtype or hidden.dtype
    # Of a size that torch.compile keeps symbolic, index makes the number that a choice needs.
    width = operator.index(hidden.shape[1])
    chosen = dispatch("pool_normalize", hidden.device, hidden.dtype, backend, width)
    if chosen in ("torch", "reference"):
        _check_offsets(cu_seqlens, hidden.shape[0])
        return pool_normalize_reference(
            hidden, cu_seqlens, mode=mode, norm=norm, weight=weight, bias=bias, eps=eps, out_dtype=out_dtype
        )
    return run_pool(hidden, cu_seqlens, weight, bias, mode, norm, eps, out_dtype, chosen)


def pool_head(
    hidden: Tensor,
    cu_seqlens: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None = None,
    *,
    mode: str = "cls",
    norm: str = "layernorm",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """`pool_normalize` with a linear layer between pooling and norm: norm(head_weight @ pool(tokens) + head_bias).

    The defaults are the head of ANCE (first token, Linear, LayerNorm; Xiong et al. 2021). head_weight [E, D], head_bias
    [E], weight and bias [E]; the pooled rows take the dtype of head_weight. Returns [B, E] in out_dtype (default that
    of hidden, under autocast too); an empty sequence gives zeros and no gradient. Errors as `pool_normalize`.
    """
    hidden, cu_seqlens = as_tensor("hidden", hidden), as_tensor("cu_seqlens", cu_seqlens)
    head_weight, head_bias = as_tensor("head_weight", head_weight), as_optional_tensor("head_bias", head_bias)
    if head_weight.ndim != 2 or hidden.ndim != 2 or head_weight.shape[1] != hidden.shape[1]:
        raise ConfigError(
            f"head_weight must be [E, D] with D of hidden; got {list(head_weight.shape)} for {list(hidden.shape)}"
        )
    pooled = pool_normalize(hidden, cu_seqlens, mode=mode, norm="none", out_dtype=head_weight.dtype, backend=backend)
    projected = torch.nn.functional.linear(pooled, head_weight, head_bias)
    single = torch.arange(projected.shape[0] + 1, dtype=torch.int32, device=projected.device)
    out = pool_normalize(
        projected,
        single,
        mode="cls",
        norm=norm,
        weight=weight,
        bias=bias,
        eps=eps,
        out_dtype=out_dtype or hidden.dtype,
        backend=backend,
    )
    return torch.where((cu_seqlens.diff() == 0)[:, None], 0.0, out)


def pool_normalize_reference(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: str = "mean",
    norm: str = "l2",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """What `pool_normalize` computes, in plain differentiable torch on any device; fp64 inputs are computed in fp64."""
    out_dtype = out_dtype or hidden.dtype
    tokens, dim = hidden.shape
    sequences = cu_seqlens.shape[0] - 1
    x = hidden if hidden.dtype == torch.float64 else hidden.float()
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    lengths = ends - starts
    empty = (lengths == 0)[:, None]
    owner = torch.repeat_interleave(torch.arange(sequences, device=x.device), lengths, output_size=tokens)
    if tokens == 0:
        pooled = x.new_zeros(sequences, dim) + x.sum()  # the sum of nothing keeps the result in the graph
    elif mode == "mean":
        pooled = x.new_zeros(sequences, dim).index_add(0, owner, x) / lengths.clamp(min=1)[:, None]
    elif mode == "cls":
        pooled = x[starts.clamp(max=tokens - 1)]
    elif mode == "last":
        pooled = x[(ends - 1).clamp(min=0)]
    else:
        pooled = x.gather(0, _first_argmax(x.detach(), owner, sequences))
    # Replaced before the norm, so that nothing of a neighbour's token reaches the gradient.
    pooled = torch.where(empty, x.new_zeros(()), pooled)
    if norm == "l2":
        pooled = pooled / torch.linalg.vector_norm(pooled, dim=1, keepdim=True).clamp_min(eps)
    elif norm == "layernorm":
        pooled = torch.nn.functional.layer_norm(
            pooled,
            (dim,),
            None if weight is None else weight.to(x.dtype),
            None if bias is None else bias.to(x.dtype),
            eps,
        )
        pooled = torch.where(empty, x.new_zeros(()), pooled)
    return pooled.to(out_dtype)


def _first_argmax(x: Tensor, owner: Tensor, sequences: int) -> Tensor:
    """Row [B, D] of the first maximum of each sequence and column (NaN is the largest); 0 for an empty sequence."""
    tokens, dim = x.shape
    index = owner[:, None].expand(tokens, dim)
    largest = x.new_full((sequences, dim), -torch.inf).scatter_reduce(0, index, x, "amax")
    candidate = (x == largest[owner]) | x.isnan()
    row = torch.where(candidate, torch.arange(tokens, device=x.device)[:, None], tokens)
    first = row.new_full((sequences, dim), tokens).scatter_reduce(0, index, row, "amin")
    return torch.where(first == tokens, 0, first)


def _check(
    hidden: Tensor, cu_seqlens: Tensor, mode: str, norm: str, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    if mode not in MODES:
        raise ConfigError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if norm not in NORMS:
        raise ConfigError(f"norm is {norm!r}; it must be one of {', '.join(NORMS)}")
    if hidden.ndim != 2 or not hidden.dtype.is_floating_point:
        raise ConfigError(f"hidden must be floating point [T, D], got {hidden.dtype} {list(hidden.shape)}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype != torch.int32:
        raise ConfigError(f"cu_seqlens must be int32 [B + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}")
    if cu_seqlens.device != hidden.device:
        raise ConfigError(f"cu_seqlens is on {cu_seqlens.device}, hidden on {hidden.device}; move one of them")
    if not eps > 0:
        raise ConfigError(f"eps is {eps}; it must be positive")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if norm != "layernorm":
            raise ConfigError(f"{name} belongs to norm='layernorm'; norm is {norm!r}")
        if parameter.shape != hidden.shape[1:]:
            raise ConfigError(f"{name} must be [{hidden.shape[1]}], got {list(parameter.shape)}")
        if parameter.device != hidden.device:
            raise ConfigError(f"{name} is on {parameter.device}, hidden on {hidden.device}; move one of them")


def _check_offsets(cu_seqlens: Tensor, tokens: int) -> None:
    """The C++ kernel checks its own offsets; on a GPU a look at them would wait for the device."""
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != tokens or bool((cu_seqlens.diff() < 0).any()):
        raise ConfigError(
            f"cu_seqlens must rise from 0 to the {tokens} rows of hidden, got {cu_seqlens.tolist()[:8]}..."
        )
