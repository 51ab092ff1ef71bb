"""`pairwise_loss` on the CPU: the call into csrc/pairwise_loss.h.

The kernel is fp32; half precision is converted on the way in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ance_fast import _C


def compute_pairwise(
    q: Tensor, pos: Tensor, neg: Tensor, scale: Tensor, mask: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss (0-dim) and, if needed, its gradients in q, pos, neg and scale (0-dim), else empty: fp32.

    q, pos: [B, D]; neg: [B, H, D]; one dtype of fp32, fp16, bf16. mask: bool [B, H] or None.
    """
    q, pos, neg = (tensor.detach().float().contiguous() for tensor in (q, pos, neg))
    loss = q.new_empty(())
    gradients = [torch.empty_like(tensor) for tensor in (q, pos, neg)] + [q.new_empty(())] if need_grad else []
    _C.pairwise_loss(
        q.numpy(),
        pos.numpy(),
        neg.numpy(),
        loss.numpy(),
        *(gradient.numpy() for gradient in gradients),
        scale=scale.item(),
        mask=None if mask is None else mask.contiguous().numpy(),
        threads=torch.get_num_threads(),
    )
    grad_q, grad_pos, grad_neg, grad_scale = gradients or (q.new_empty(0) for _ in range(4))
    return loss, grad_q, grad_pos, grad_neg, grad_scale
