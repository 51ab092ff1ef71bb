"""A scalar function of every differentiable op, for tests that hold all ops to the same promise."""

from __future__ import annotations

import torch

from ance_fast.ops import contrastive_loss, pairwise_loss, pool_normalize

LENGTHS = (1, 0, 300, 17, 64, 0, 2)


def contrastive(q, p, **options):
    rows, columns = (torch.arange(n, device=q.device) for n in (q.shape[0] + 1, p.shape[0]))
    documents, positives = columns // 2, (rows, rows[:-1] * 3 % p.shape[0])
    return contrastive_loss(q, p, doc_ids=documents, positives=positives, scale=3.0, **options)


def pairwise(q, pos, neg, **options):
    mask = torch.arange(neg.shape[0] * neg.shape[1], device=q.device).reshape(neg.shape[:2]) % 3 > 0
    return pairwise_loss(q, pos, neg, mask=mask, scale=3.0, **options)


def pool(mode, norm, leaves, **options):
    hidden, *parameters = leaves
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(hidden.device)
    parameters = dict(zip(("weight", "bias"), parameters, strict=False)) if norm == "layernorm" else {}
    out = pool_normalize(hidden, cu_seqlens, mode=mode, norm=norm, **parameters, **options)
    # A function of all elements whose gradient is neither constant nor small.
    weights = torch.cos(torch.arange(out.numel(), dtype=torch.float64, device=out.device)).reshape(out.shape)
    return (out.double() * weights).sum()


def case(name, rows, dim):
    """A scalar function of `leaves`, which keywords hand options to the op, and its leaves in float64."""
    draw = torch.Generator().manual_seed(dim)

    def unit(*shape):
        values = torch.randn(*shape, generator=draw, dtype=torch.float64)
        return torch.nn.functional.normalize(values, dim=-1) if dim > 1 else values

    if name == "contrastive":
        return lambda leaves, **options: contrastive(*leaves, **options), [unit(rows, dim), unit(2 * rows + 1, dim)]
    if name == "bidirectional":
        return (
            lambda leaves, **options: contrastive(*leaves, bidirectional=True, **options),
            [unit(rows, dim), unit(2 * rows + 1, dim)],
        )
    if name == "pairwise":
        return lambda leaves, **options: pairwise(*leaves, **options), [
            unit(rows, dim),
            unit(rows, dim),
            unit(rows, 3, dim),
        ]
    mode, norm = name.split("+")
    leaves = [torch.randn(sum(LENGTHS), dim, generator=draw, dtype=torch.float64)]
    if norm == "layernorm":
        leaves += [torch.randn(dim, generator=draw, dtype=torch.float64) for _ in range(2)]
    return lambda leaves, **options: pool(mode, norm, leaves, **options), leaves


NAMES = [
    "contrastive",
    "bidirectional",
    "pairwise",
    "mean+l2",
    "mean+layernorm",
    "cls+none",
    "last+l2",
    "max+layernorm",
]


def value_and_gradients(function, leaves, **options):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = function(leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]
