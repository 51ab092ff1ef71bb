"""ANCE's pairwise loss with its gradient computed in the forward pass.

Xiong et al. 2021 (ANCE), negative log likelihood of the positive against one negative:
    -log(exp(s q.p) / (exp(s q.p) + exp(s q.n))) = softplus(s (q.n - q.p))
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.dispatch import dispatch
from ance_fast.ops.interchange import as_optional_tensor, as_tensor
from ance_fast.ops.loss_wiring import (
    accumulate_dtype,
    check_embeddings,
    check_scale,
    differentiate_once,
    scale_tensor,
    softplus,
    without_autocast,
)


def pairwise_loss(
    q: Tensor,
    pos: Tensor,
    neg: Tensor,
    *,
    scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mean over rows of the mean over a row's valid negatives of softplus(scale * (q.n - q.p)).

    q, pos: [B, D]; neg: [B, H, D]; mask: bool [B, H], True where a negative counts (default all); tensors, or CuPy or
    NumPy arrays, taken without a copy. scale: number or one-element tensor. A row without a valid negative contributes
    0 and still counts in the mean over rows; B = 0 gives 0. What stands in masked negatives, NaN included, has no
    influence.

    Returns a 0-dim tensor, fp32 (fp64 for fp64 inputs), accumulated in that dtype. Differentiable once in q, pos, neg
    and a tensor scale (backend="reference": any number of times). Raises ConfigError for wrong shapes, dtypes or
    devices.

    Relations: `contrastive_loss` compares a positive with all its negatives at once (softmax) and shares candidates
    between rows; this loss is the mean over single negatives and costs O(B H D).
    """
    q, pos, neg = as_tensor("q", q), as_tensor("pos", pos), as_tensor("neg", neg)
    mask = as_optional_tensor("mask", mask)
    check_embeddings("q", q, ("B", "D"))
    check_embeddings("pos", pos, ("B", "D"), like=q)
    check_embeddings("neg", neg, ("B", "H", "D"), like=q)
    batch, dim = q.shape
    if pos.shape != q.shape or neg.shape[0] != batch or neg.shape[2] != dim:
        raise ConfigError(
            "q, pos and neg must be [B, D], [B, D], [B, H, D]; "
            f"got {list(q.shape)}, {list(pos.shape)}, {list(neg.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != neg.shape[:2] or mask.device != q.device):
        raise ConfigError(
            f"mask must be bool {list(neg.shape[:2])} on {q.device}, "
            f"got {mask.dtype} {list(mask.shape)} on {mask.device}"
        )
    check_scale(scale)
    chosen = dispatch("pairwise_loss", q.device, q.dtype, backend)
    if chosen == "reference":
        return pairwise_loss_reference(q, pos, neg, scale=scale, mask=mask)
    factor = scale_tensor(scale)
    need_scale = torch.is_grad_enabled() and factor.requires_grad
    need = need_scale or (torch.is_grad_enabled() and any(t.requires_grad for t in (q, pos, neg)))
    return _run(q, pos, neg, factor, mask, need, need_scale, chosen)


def pairwise_loss_reference(
    q: Tensor, pos: Tensor, neg: Tensor, *, scale: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    """What `pairwise_loss` computes, in plain differentiable torch; fp64 inputs are computed in fp64."""
    dtype = accumulate_dtype(q)
    with without_autocast(q.device):
        q, pos, neg = q.to(dtype), pos.to(dtype), neg.to(dtype)
        valid = neg.new_ones(neg.shape[:2], dtype=torch.bool) if mask is None else mask
        neg = torch.where(valid[:, :, None], neg, neg.new_zeros(()))
        difference = torch.einsum("bhd,bd->bh", neg, q) - (q * pos).sum(1, keepdim=True)
        terms = torch.where(valid, softplus(scale_tensor(scale).to(dtype) * difference), neg.new_zeros(()))
        rows = terms.sum(1) / valid.sum(1).clamp(min=1)
        return rows.sum() / max(q.shape[0], 1)


_KERNELS = {"cpp": "cpu", "triton": "triton"}


@functools.cache
def _kernel(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    # Imported on use: each needs something that may not be installed.
    module = importlib.import_module(f"ance_fast.ops.pairwise_loss_{_KERNELS[backend]}")
    return module.compute_pairwise


def _compute(
    q: Tensor,
    pos: Tensor,
    neg: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_grad: bool,
    need_scale: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss and, if needed, its gradients in the accumulation dtype (else empty)."""
    if backend in _KERNELS:
        loss, grad_q, grad_pos, grad_neg, grad_scale = _kernel(backend)(q, pos, neg, scale, mask, need_grad)
        # Moved only when wanted: a number is on the CPU, and moving its gradient there would wait for the device.
        grad_scale = grad_scale.to(scale.device) if need_scale else scale.new_empty(0, dtype=loss.dtype)
        return loss, grad_q, grad_pos, grad_neg, grad_scale
    dtype = accumulate_dtype(q)
    with without_autocast(q.device):
        q, pos, neg = q.to(dtype), pos.to(dtype), neg.to(dtype)
        factor = scale.to(dtype)
        batch, negatives = neg.shape[:2]
        if mask is not None:
            neg = torch.where(mask[:, :, None], neg, neg.new_zeros(()))
            count = mask.sum(1, keepdim=True).clamp(min=1).to(dtype)
        else:
            count = q.new_full((batch, 1), max(negatives, 1))
        difference = torch.einsum("bhd,bd->bh", neg, q) - (q * pos).sum(1, keepdim=True)
        x = factor * difference
        terms, slope = softplus(x), torch.sigmoid(x)
        if mask is not None:
            terms, slope = terms.masked_fill_(~mask, 0), slope.masked_fill_(~mask, 0)
        loss = (terms / count).sum() / max(batch, 1)
        if not need_grad:
            return loss, q.new_empty(0), q.new_empty(0), q.new_empty(0), scale.new_empty(0, dtype=dtype)
        slope /= count  # unscaled: 1/B and the scale enter in the results, where they cannot underflow
        total = slope.sum(1, keepdim=True)
        step = factor / max(batch, 1)
        grad_q = (torch.einsum("bh,bhd->bd", slope, neg) - total * pos) * step
        grad_pos = -total * q * step
        grad_neg = slope[:, :, None] * (q * step)[:, None, :]
        grad_scale = scale.new_empty(0, dtype=dtype)
        if need_scale:
            grad_scale = ((slope * difference).sum() / max(batch, 1)).to(scale.device)
        # Contiguous whatever the strides of the inputs, as the fake kernel says.
        return loss, grad_q.contiguous(), grad_pos.contiguous(), grad_neg.contiguous(), grad_scale


_forward = torch.library.custom_op("ance_fast::pairwise_loss", _compute, mutates_args=())


@_forward.register_fake
def _(
    q: Tensor,
    pos: Tensor,
    neg: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_grad: bool,
    need_scale: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(q)
    shapes = [t.shape if need_grad else (0,) for t in (q, pos, neg)]
    return (
        q.new_empty((), dtype=dtype),
        q.new_empty(shapes[0], dtype=dtype),
        q.new_empty(shapes[1], dtype=dtype),
        q.new_empty(shapes[2], dtype=dtype),
        scale.new_empty(() if need_scale else (0,), dtype=dtype),
    )


_run = differentiate_once(_compute, gradients=4, op=_forward)
