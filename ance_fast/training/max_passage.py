"""MaxP losses: a document's score is that of its best chunk, and only that chunk learns from it.

Which chunk is best is found without gradients; the losses then see the chosen chunks alone, as if each document were
one passage, so their gradient is that of the maximum.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ance_fast.ops import contrastive_loss, pairwise_loss
from ance_fast.ops.loss_wiring import without_autocast
from ance_fast.training.batch import TrainingBatch


def best_chunks(queries: Tensor, chunks: Tensor, starts: np.ndarray) -> Tensor:
    """For each query and document the row of its best chunk, int64 [B, N]; of equal ones the first.

    queries: [B, D]; chunks: [C, D]; starts int64 [N + 1]: document n has the rows starts[n] .. starts[n + 1] - 1.
    Raises `ValueError` for a document without chunks.
    """
    sizes = np.diff(starts)
    if (sizes < 1).any():
        raise ValueError(f"document {int(np.argmin(sizes))} of the batch has no chunk with tokens")
    place = np.arange(max(1, int(sizes.max(initial=0))))
    rows = torch.from_numpy(starts[:-1, None] + np.minimum(place, sizes[:, None] - 1)).to(chunks.device)
    with torch.no_grad(), without_autocast(queries.device):
        kind = torch.promote_types(queries.dtype, torch.float32)
        products = queries.to(kind) @ chunks.to(kind).T
        # A short document's last chunk stands again for those it lacks, behind itself: the first of equals is taken.
        best = products[:, rows.flatten()].unflatten(1, rows.shape).argmax(dim=2)
    return rows.expand(len(queries), *rows.shape).gather(2, best.unsqueeze(2)).squeeze(2)


def pairwise_max_loss(queries: Tensor, chunks: Tensor, batch: TrainingBatch, scale: float) -> Tensor:
    """`pairwise_loss` of each query's own positive and negative documents, by their best chunks."""
    assert batch.row_starts is not None
    best = best_chunks(queries, chunks, batch.row_starts)
    positive = torch.as_tensor(batch.positive, device=chunks.device)
    negative = torch.as_tensor(batch.negatives, device=chunks.device)
    chosen = chunks[best.gather(1, positive.unsqueeze(1)).squeeze(1)]
    against = chunks[best.gather(1, negative.clamp_min(0))]
    mask = None if bool((batch.negatives >= 0).all()) else negative >= 0
    return pairwise_loss(queries, chosen, against, scale=scale, mask=mask)


def contrastive_max_loss(
    queries: Tensor, chunks: Tensor, batch: TrainingBatch, scale: float, group: ProcessGroup | None = None
) -> Tensor:
    """`contrastive_loss` with a column a document: its best chunk for the row's query, all others masked.

    Every chunk is a column under a number of its own, and each row masks what is not its documents' best: also of other
    ranks' documents, whose chunks are gathered once for that.
    """
    assert batch.row_starts is not None
    most, device = batch.most_chunks, queries.device
    sizes = np.diff(batch.row_starts)
    number = np.arange(int(sizes.sum())) - np.repeat(batch.row_starts[:-1], sizes)
    columns = torch.from_numpy(np.repeat(batch.passage_rows, sizes) * most + number).to(device)
    best = best_chunks(queries, chunks, batch.row_starts)
    labels = best.gather(1, torch.as_tensor(batch.positive, device=device).unsqueeze(1)).squeeze(1)
    everyones, numbers = chunks.detach(), columns
    if group is not None:
        everyones, numbers = _gathered(everyones, group), _gathered(columns, group)
    begins = torch.nonzero(numbers % most == 0).flatten().cpu().numpy()
    candidates = best_chunks(queries, everyones, np.append(begins, len(numbers)))
    beaten = torch.ones(len(queries), len(numbers), dtype=torch.bool, device=device).scatter_(1, candidates, False)
    row, column = torch.nonzero(beaten, as_tuple=True)
    masked = _joined(batch.known, most, row.cpu().numpy(), numbers[column].cpu().numpy(), len(queries))
    return contrastive_loss(
        queries,
        chunks,
        labels=labels,
        doc_ids=columns,
        positives=(torch.from_numpy(masked[0]).to(device), torch.from_numpy(masked[1]).to(device)),
        scale=scale,
        process_group=group,
    )


def _joined(
    known: tuple[np.ndarray, np.ndarray], most: int, row: np.ndarray, number: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """CSR of what each row masks: all chunks of its known documents, and the chunks `number` [m] of the rows `row`."""
    offsets, documents = known
    owner = np.repeat(np.arange(count), np.diff(offsets))
    every = (documents[:, None] * most + np.arange(most)).reshape(-1)
    owners = np.concatenate([np.repeat(owner, most), row])
    values = np.concatenate([every, number])[np.argsort(owners, kind="stable")]
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.int64), values


def _gathered(rows: Tensor, group: ProcessGroup) -> Tensor:
    """All ranks' rows, which may differ in number, one rank after the other."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(group.size())]
    dist.all_gather(counts, count, group=group)
    sizes = torch.cat(counts).tolist()
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
