"""Softmax loss over a batch of candidates, in row chunks, with its gradient computed in the forward pass.

For a chunk of rows the logits S = scale * q p^T exist once, in fp32; they are masked, reduced, and overwritten by
P - onehot, from which two GEMMs give the chunk's share of both gradients: 6 B N D FLOPs in all and
O((B + N) D + chunk_rows N) memory, where autograd over the whole matrix keeps O(B N). `contrastive_loss_reference` is
the specification, contrastive_chunks.py the loop.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ance_fast.errors import ConfigError
from ance_fast.ops.contrastive_chunks import chunked_loss, operand_dtype
from ance_fast.ops.contrastive_group import check_together, group_loss
from ance_fast.ops.contrastive_problem import (
    Ragged,
    build_problem,
    check_index,
    check_ragged,
    check_values,
    expand,
    target_lists,
    transpose,
)
from ance_fast.ops.dispatch import dispatch
from ance_fast.ops.interchange import as_optional_tensor, as_tensor
from ance_fast.ops.loss_wiring import (
    accumulate_dtype,
    check_embeddings,
    check_scale,
    differentiate_once,
    runs_eagerly,
    scale_tensor,
    softplus,
    without_autocast,
    workspace_gain,
)


def contrastive_loss(
    q: Tensor,
    p: Tensor,
    *,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    doc_ids: Tensor | None = None,
    positives: tuple[Tensor, Tensor] | None = None,
    scale: float | Tensor = 1.0,
    chunk_rows: int | None = None,
    bidirectional: bool = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mean over rows of -log softmax of each row's target among all candidates that are not known positives.

    q: [B, D] anchors; p: [N, D] candidates, same dtype. Like doc_ids, CuPy or NumPy arrays are taken without a copy.
    labels: int64 [B], the target column of each row (default: column i for row i), or several targets as CSR
        (offsets int64 [B + 1], columns int64): then the mean over them, each with the other targets left out of its
        denominator. A row without a target contributes 0 and still counts in the mean.
    doc_ids: int64 [N], the document in each column. positives: CSR (offsets int64 [B + 1], document ids int64), the
        documents known to answer each row; needs doc_ids. Masked, that is left out of a row's denominator, are columns
        whose document is one of the row's positives or the document of one of its targets, targets themselves excepted.
    scale: number or one-element tensor, the inverse temperature.
    chunk_rows: rows of logits held at once. By default from the size of the L2 cache on a GPU, some megabytes on a CPU;
        for very large N the columns are then cut into tiles, which bounds the memory and costs a third more FLOPs.
    bidirectional: average with the loss in the other direction: anchors are the columns that are a target of some row,
        candidates all rows, targets and masks transposed (a row that has the anchor's document among its positives or
        target documents is masked), mean over anchors.
    process_group: count the columns of all its ranks as candidates. Each rank passes its own q, p and lists (labels are
        columns of its own p); the loss is scaled so that gradients averaged over the ranks, as
        DistributedDataParallel does, are those of one process with the whole batch. Not under torch.compile.

    Returns a 0-dim tensor, 0 for B = 0; logits and sums are fp32 whatever the input dtype and autocast (fp64 for
    fp64). Differentiable once in q, p and a tensor scale: a double backward raises RuntimeError (backend="reference"
    allows it); without grad no gradient is computed. Raises ConfigError for wrong shapes, dtypes or devices and, on the
    CPU, for targets outside the N columns and offsets that do not rise to their values.

    Relations: in-batch InfoNCE is labels=None with p = [B, D]; mined negatives are further columns of p.
    `pairwise_loss` is ANCE's own loss and sees one negative at a time.
    """
    check = functools.partial(_check, q, p, labels, doc_ids, positives, scale, chunk_rows, backend, process_group)
    # Ranks that wait for one that raises here would wait for ever.
    checked = check() if process_group is None else check_together(check, q, process_group)
    q, p, targets, doc_ids, positives, chosen = checked
    factor = scale_tensor(scale)
    if process_group is not None:
        return group_loss(
            q,
            p,
            factor,
            targets,
            doc_ids,
            positives,
            group=process_group,
            backend=chosen,
            chunk_rows=chunk_rows or 0,
            bidirectional=bidirectional,
        )
    if chosen == "reference":
        return contrastive_loss_reference(
            q, p, labels=targets, doc_ids=doc_ids, positives=positives, scale=scale, bidirectional=bidirectional
        )
    recording = torch.is_grad_enabled()
    need_scale = recording and factor.requires_grad
    need_q = need_scale or (recording and q.requires_grad)  # the gradient of scale is read off that of q
    need_p = recording and p.requires_grad
    offsets, documents = positives if positives is not None else (None, None)
    return _run(
        q,
        p,
        factor,
        *targets,
        doc_ids,
        offsets,
        documents,
        chosen,
        chunk_rows or 0,
        bidirectional,
        need_q,
        need_p,
        need_scale,
    )


def _check(
    q: Tensor,
    p: Tensor,
    labels: Tensor | tuple[Tensor, Tensor] | None,
    doc_ids: Tensor | None,
    positives: tuple[Tensor, Tensor] | None,
    scale: float | Tensor,
    chunk_rows: int | None,
    backend: str,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor, Ragged, Tensor | None, Ragged | None, str]:
    """q, p, targets, doc_ids and positives as tensors, and the backend; raises ConfigError for what is wrong."""
    q, p, doc_ids = as_tensor("q", q), as_tensor("p", p), as_optional_tensor("doc_ids", doc_ids)
    check_embeddings("q", q, ("B", "D"))
    check_embeddings("p", p, ("N", "D"), like=q)
    if q.shape[1] != p.shape[1]:
        raise ConfigError(f"q and p must have the same width, got {list(q.shape)} and {list(p.shape)}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ConfigError(f"chunk_rows is {chunk_rows}; it must be at least 1")
    check_scale(scale)
    targets = target_lists(labels, q, p)
    check_index("doc_ids", doc_ids, q)
    if doc_ids is not None and doc_ids.shape[0] != p.shape[0]:
        raise ConfigError(f"doc_ids must have one entry for each of the {p.shape[0]} columns, got {doc_ids.shape[0]}")
    if positives is not None:
        if doc_ids is None:
            raise ConfigError("positives lists documents, so doc_ids must say which document each column holds")
        positives = check_ragged("positives", positives, q)
    if runs_eagerly(q):
        check_values(labels, targets, positives, p.shape[0])
    chosen = dispatch("contrastive_loss", q.device, q.dtype, backend)
    if process_group is not None and chosen == "reference":
        raise ConfigError("the reference knows no process_group; choose another backend")
    return q, p, targets, doc_ids, positives, chosen


def contrastive_loss_reference(
    q: Tensor,
    p: Tensor,
    *,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    doc_ids: Tensor | None = None,
    positives: tuple[Tensor, Tensor] | None = None,
    scale: float | Tensor = 1.0,
    bidirectional: bool = False,
) -> Tensor:
    """What `contrastive_loss` computes, over the whole [B, N] matrix, in plain differentiable torch."""
    dtype = accumulate_dtype(q)
    with without_autocast(q.device):
        logits = scale_tensor(scale).to(dtype) * (q.to(dtype) @ p.to(dtype).T)
    offsets, columns = target_lists(labels, q, p)
    rows = expand(offsets, columns.shape[0])
    count = torch.zeros_like(logits).index_put_((rows, columns), logits.new_ones(()), accumulate=True)
    known = torch.zeros_like(logits, dtype=torch.bool)
    if doc_ids is not None:
        same_as_target = (doc_ids[None, :] == doc_ids[columns][:, None]).to(dtype)
        known |= logits.new_zeros(logits.shape).index_add(0, rows, same_as_target) > 0
    if doc_ids is not None and positives is not None:
        is_positive = (doc_ids[None, :] == positives[1][:, None]).to(dtype)
        owners = expand(positives[0], positives[1].shape[0])
        known |= logits.new_zeros(logits.shape).index_add(0, owners, is_positive) > 0
    forward = _row_losses(logits, count, known)
    loss = forward.sum() / max(logits.shape[0], 1)
    if not bidirectional:
        return loss
    anchors = (count > 0).any(0)
    backward = _row_losses(logits.T, count.T, known.T)
    return (loss + torch.where(anchors, backward, 0).sum() / anchors.sum().clamp(min=1)) / 2


def _row_losses(logits: Tensor, count: Tensor, known: Tensor) -> Tensor:
    """[rows] mean over a row's targets (count: how often each column is one) of -log softmax among its negatives."""
    negatives = logits.masked_fill(known | (count > 0), -torch.inf)
    # A row without negatives has logsumexp -inf, whose derivative is NaN; its loss is 0.
    lonely = torch.isneginf(negatives).all(1, keepdim=True)
    rest = torch.where(lonely, -torch.inf, torch.where(lonely, 0.0, negatives).logsumexp(1, keepdim=True))
    terms = torch.where(count > 0, softplus(rest - logits), 0) * count
    return terms.sum(1) / count.sum(1).clamp(min=1)


def _compute(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    target_offsets: Tensor,
    target_columns: Tensor,
    doc_ids: Tensor | None,
    positive_offsets: Tensor | None,
    positive_documents: Tensor | None,
    backend: str,
    chunk_rows: int,
    bidirectional: bool,
    need_q: bool,
    need_p: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, step, and if needed the gradients in q and p, still without the factor step, and in scale (else empty).

    Gradients are of the accumulation dtype. 1/B and the scale are in the step: in the workspace, P - onehot, they would
    underflow in narrower types, and the backward pass multiplies by the upstream gradient anyway.
    """
    batch, dtype = q.shape[0], accumulate_dtype(q)
    with without_autocast(q.device):
        read_as = operand_dtype(q, backend)
        operand_q, operand_p, factor = q.to(read_as), p.to(read_as), scale.to(dtype)
        problem = build_problem((target_offsets, target_columns), doc_ids, positive_offsets, positive_documents)
        losses, grad_q, grad_p = chunked_loss(
            operand_q, operand_p, factor, problem, backend=backend, chunk_rows=chunk_rows, need_q=need_q, need_p=need_p
        )
        loss = losses.mean() if batch else losses.sum()
        weight = 1 / (max(batch, 1) * workspace_gain(read_as))
        if bidirectional:
            anchors, count, other = transpose(problem, p.shape[0])
            losses_p, grad_anchors, grad_rows = chunked_loss(
                operand_p[anchors],
                operand_q,
                factor,
                other,
                backend=backend,
                chunk_rows=chunk_rows,
                need_q=need_p,
                need_p=need_q,
            )
            count = count.clamp(min=1).to(dtype)
            loss = (loss + losses_p.sum() / count) / 2
            weight /= 2
            ratio = batch / count
            if need_q:
                grad_q += grad_rows.mul_(ratio)
            if need_p:
                grad_p.index_add_(0, anchors, grad_anchors.mul_(ratio))
        # d loss / d scale = sum_ij (P - onehot)_ij (q p^T)_ij = sum_i q_i . (the unscaled gradient of q)_i
        grad_scale = scale.new_empty(0, dtype=dtype)
        if need_scale:
            grad_scale = (torch.dot(q.to(dtype).flatten(), grad_q.flatten()) * weight).to(scale.device)
        return loss, factor * weight, grad_q, grad_p, grad_scale


@functools.wraps(_compute)
def _check_and_compute(*arguments: Any) -> tuple[Tensor, ...]:
    _, p, _, *targets, _, offsets, documents = arguments[:8]
    positives = None if offsets is None else (offsets, documents)
    check_values((targets[0], targets[1]), (targets[0], targets[1]), positives, p.shape[0])
    return _compute(*arguments)


_forward = torch.library.custom_op("ance_fast::contrastive_loss", _check_and_compute, mutates_args=())


@_forward.register_fake
def _(
    q: Tensor,
    p: Tensor,
    scale: Tensor,
    target_offsets: Tensor,
    target_columns: Tensor,
    doc_ids: Tensor | None,
    positive_offsets: Tensor | None,
    positive_documents: Tensor | None,
    backend: str,
    chunk_rows: int,
    bidirectional: bool,
    need_q: bool,
    need_p: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(q)
    return (
        q.new_empty((), dtype=dtype),
        scale.new_empty((), dtype=dtype),
        q.new_empty(q.shape if need_q else (0,), dtype=dtype),
        p.new_empty(p.shape if need_p else (0,), dtype=dtype),
        scale.new_empty(() if need_scale else (0,), dtype=dtype),
    )


_run = differentiate_once(_compute, gradients=3, stepped=2, op=_forward)
