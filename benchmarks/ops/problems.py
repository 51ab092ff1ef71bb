"""The inputs of each op, what it costs at least, and what it should return in float64.

FLOPs and bytes are what the task requires, not what an implementation spends: the loss counts its three products
(6 B N D), memory counts each input read once and each result written once. So a contestant that recomputes or spills
shows a lower rate, and rates compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.ops import eager

LOGITS_AT_ONCE = 2**24  # in float64: 128 MB, so that the check also fits beside the largest batches


class Problem(Protocol):
    """One set of inputs. `leaves` are the tensors whose gradients are wanted; `upstream` is the gradient of the result
    (None: the result is a loss)."""

    @property
    def leaves(self) -> tuple[Tensor, ...]: ...

    @property
    def upstream(self) -> Tensor | None: ...

    @property
    def flops(self) -> float: ...

    @property
    def bytes(self) -> float: ...

    def exact(self) -> tuple[Tensor, ...]:
        """The result and the gradients of the leaves, in float64."""
        ...


@dataclass(frozen=True)
class Contrastive:
    q: Tensor
    p: Tensor
    doc_ids: Tensor | None
    scale: float
    chunk_rows: int | None = None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.q, self.p

    @property
    def upstream(self) -> None:
        return None

    @property
    def flops(self) -> float:
        return 6.0 * self.q.shape[0] * self.p.shape[0] * self.q.shape[1]

    @property
    def bytes(self) -> float:
        return 2.0 * (self.q.nbytes + self.p.nbytes)

    def exact(self) -> tuple[Tensor, ...]:
        return exact_contrastive(self.q.detach().double(), self.p.detach().double(), self.doc_ids, self.scale)


@dataclass(frozen=True)
class Pool:
    hidden: Tensor
    cu_seqlens: Tensor
    mode: str
    norm: str
    weight: Tensor | None
    bias: Tensor | None
    gradient: Tensor | None  # of the pooled rows; None where only the forward pass is measured
    lengths: tuple[int, ...]

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        if self.gradient is None:
            return ()
        return tuple(t for t in (self.hidden, self.weight, self.bias) if t is not None)

    @property
    def upstream(self) -> Tensor | None:
        return self.gradient

    @property
    def flops(self) -> float:
        """One a token and column where all tokens are read, and about four a pooled value for the norm in each
        direction. The backward pass copies the gradient of a row to its tokens: no arithmetic."""
        pooled = 0 if self.mode in ("cls", "last") else self.hidden.numel()
        norm = 0 if self.norm == "none" else 4 * len(self.lengths) * self.hidden.shape[1]
        return float(pooled + norm * (1 if self.gradient is None else 2))

    @property
    def bytes(self) -> float:
        rows = len(self.lengths) * self.hidden.shape[1] * self.hidden.element_size()
        read = rows if self.mode in ("cls", "last") else self.hidden.nbytes
        forward = float(read + rows)
        return forward if self.gradient is None else forward + rows + self.hidden.nbytes

    def exact(self) -> tuple[Tensor, ...]:
        hidden, weight, bias = (
            None if t is None else t.detach().double().requires_grad_(bool(self.leaves))
            for t in (self.hidden, self.weight, self.bias)
        )
        assert hidden is not None
        wide = Pool(hidden, self.cu_seqlens, self.mode, self.norm, weight, bias, self.gradient, self.lengths)
        out = eager.pool(wide)
        if self.gradient is None:
            return (out,)
        return out.detach(), *torch.autograd.grad(out, wide.leaves, self.gradient.double())


@dataclass(frozen=True)
class Pairwise:
    q: Tensor
    pos: Tensor
    neg: Tensor
    scale: float

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.q, self.pos, self.neg

    @property
    def upstream(self) -> None:
        return None

    @property
    def flops(self) -> float:
        """The cheaper of two ways. Through a score for each of the 1 + H candidates: a product and a sum an element for
        the scores and for the gradient of q, a product for the candidates' own. Through q . (n - p) for each negative:
        one subtraction more, but only the last product for the positive."""
        negatives = self.neg.shape[1]
        return float(self.q.numel() * min(5 * (negatives + 1), 6 * negatives + 1))

    @property
    def bytes(self) -> float:
        return 2.0 * sum(t.nbytes for t in self.leaves)

    def exact(self) -> tuple[Tensor, ...]:
        q, pos, neg = (t.detach().double().requires_grad_() for t in self.leaves)
        wide = Pairwise(q, pos, neg, self.scale)
        loss = eager.pairwise(wide)
        return loss.detach(), *torch.autograd.grad(loss, wide.leaves)


@dataclass(frozen=True)
class Step:
    """Pooling, normalisation and contrastive loss of one batch: the first `queries` sequences are the anchors."""

    pool: Pool
    queries: int
    scale: float

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.pool.hidden,)

    @property
    def upstream(self) -> None:
        return None

    @property
    def flops(self) -> float:
        columns = len(self.pool.lengths) - self.queries
        return 6.0 * self.queries * columns * self.pool.hidden.shape[1] + self.pool.flops

    @property
    def bytes(self) -> float:
        return 2.0 * self.pool.hidden.nbytes

    def exact(self) -> tuple[Tensor, ...]:
        hidden = self.pool.hidden.detach().double().requires_grad_()
        wide = Pool(hidden, self.pool.cu_seqlens, self.pool.mode, self.pool.norm, None, None, None, self.pool.lengths)
        rows = eager.pool(wide)
        loss, grad_q, grad_p = exact_contrastive(
            rows[: self.queries].detach(), rows[self.queries :].detach(), None, self.scale
        )
        return loss, *torch.autograd.grad(rows, hidden, torch.cat([grad_q, grad_p]))


def exact_contrastive(q: Tensor, p: Tensor, doc_ids: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients from their formulas, some rows at a time; shares no code with any contestant."""
    batch = q.shape[0]
    total, grad_q, grad_p = q.new_zeros(()), torch.empty_like(q), torch.zeros_like(p)
    step = max(1, LOGITS_AT_ONCE // p.shape[0])
    for begin in range(0, batch, step):
        rows = q[begin : begin + step]
        index = torch.arange(rows.shape[0], device=q.device)
        target = index + begin
        logits = scale * (rows @ p.T)
        if doc_ids is not None:
            same = doc_ids[target][:, None] == doc_ids[None, :]
            same[index, target] = False
            logits[same] = -math.inf
        top = logits.logsumexp(1)
        total += (top - logits[index, target]).sum()
        slope = (logits - top[:, None]).exp()
        slope[index, target] -= 1
        grad_q[begin : begin + step] = slope @ p
        grad_p += slope.T @ rows
    return total / batch, grad_q * (scale / batch), grad_p * (scale / batch)


def contrastive(
    batch: int, columns: int, dim: int, dtype: torch.dtype, device: str, *, masks: bool, chunk_rows: int | None = None
) -> Contrastive:
    """Unit vectors whose positives stand out moderately, so that neither loss nor gradients vanish; with `masks` about
    a fifth of the columns share their document with another one."""
    random = torch.Generator(device).manual_seed(batch + columns + dim)
    q, p = _unit(batch, dim, random), _unit(columns, dim, random)
    p[:batch] = torch.nn.functional.normalize(q + 2 * p[:batch], dim=1)
    ids = torch.randint(0, 4 * columns, (columns,), generator=random, device=device) if masks else None
    return Contrastive(_leaf(q, dtype), _leaf(p, dtype), ids, 20.0, chunk_rows)


def pool(
    lengths: tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
    device: str,
    *,
    mode: str,
    norm: str,
    backward: bool = True,
) -> Pool:
    """Random rows. For "max" one token is lifted above the others in each sequence and column: who of equals gets the
    gradient differs between implementations, and narrow dtypes have equals."""
    sequences = len(lengths)
    random = torch.Generator(device).manual_seed(sequences + dim)
    hidden = torch.randn(sum(lengths), dim, generator=random, device=device)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    if mode == "max":
        place = torch.rand(sequences, dim, generator=random, device=device)
        winners = offsets[:-1, None] + (place * offsets.diff()[:, None]).long()
        hidden.scatter_add_(0, winners, torch.full_like(place, 10))
    weight = bias = None
    if norm == "layernorm":
        weight, bias = (_leaf(torch.randn(dim, generator=random, device=device), dtype) for _ in range(2))
    gradient = torch.randn(sequences, dim, generator=random, device=device).to(dtype) if backward else None
    leaf = _leaf(hidden, dtype) if backward else hidden.to(dtype)
    return Pool(leaf, offsets, mode, norm, weight, bias, gradient, lengths)


def pairwise(batch: int, negatives: int, dim: int, dtype: torch.dtype, device: str) -> Pairwise:
    random = torch.Generator(device).manual_seed(batch + negatives + dim)
    q, pos = _unit(batch, dim, random), _unit(batch, dim, random)
    neg = _unit(batch * negatives, dim, random).view(batch, negatives, dim)
    return Pairwise(_leaf(q, dtype), _leaf(pos, dtype), _leaf(neg, dtype), 20.0)


def step(queries: int, columns: int, dim: int, dtype: torch.dtype, device: str) -> Step:
    lengths = lognormal_lengths(queries + columns)
    return Step(pool(lengths, dim, dtype, device, mode="mean", norm="l2"), queries, 20.0)


def lognormal_lengths(sequences: int) -> tuple[int, ...]:
    """Lengths with mean 60, spread as those of passages."""
    spread = 0.5
    random = torch.Generator().manual_seed(sequences)
    lengths = torch.exp(math.log(60) - spread**2 / 2 + spread * torch.randn(sequences, generator=random))
    return tuple(lengths.round().clamp(4, 256).int().tolist())


def _unit(rows: int, dim: int, random: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=random, device=random.device), dim=1)


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).detach().requires_grad_()
