"""From a batch's embeddings to its loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ance_fast.models.encoder import Encoder
from ance_fast.ops import contrastive_loss, pairwise_loss
from ance_fast.training.batch import TrainingBatch
from ance_fast.training.max_passage import contrastive_max_loss, pairwise_max_loss


def loss_scale(scale: float | None, encoder: Encoder) -> float:
    """What multiplies scores: `scale` if it is given, else 20 for encoders that L2-normalise and 1 for others."""
    return scale if scale is not None else (20.0 if encoder.layout.normalize else 1.0)


def batch_loss(
    kind: str, embeddings: Tensor, batch: TrainingBatch, scale: float, group: ProcessGroup | None = None
) -> Tensor:
    """Scalar loss of a batch whose `embeddings` [B + N, dim] are its B queries and then its N distinct passages, or all
    chunks of them, of which the best for a query stands for the passage.

    "pairwise": ANCE's softplus(scale * (q.n - q.p)) on a query's own negatives. "contrastive": InfoNCE over all N
    passages, with every known positive of a query but the chosen one masked. Of several processes, the `group`, each
    has a part of the batch (`shared_batch`): the mean of their losses is that of the whole, and that of their gradients
    too.
    """
    device = embeddings.device
    queries, passages = embeddings[: batch.num_queries], embeddings[batch.num_queries :]
    if batch.row_starts is not None:
        if kind == "pairwise":
            return pairwise_max_loss(queries, passages, batch, scale)
        return contrastive_max_loss(queries, passages, batch, scale, group)
    positive = torch.as_tensor(batch.positive, device=device)
    if kind == "pairwise":
        negative = torch.as_tensor(batch.negatives, device=device)
        valid = negative >= 0
        chosen = passages[negative.clamp_min(0)]
        mask = None if bool((batch.negatives >= 0).all()) else valid
        return pairwise_loss(queries, passages[positive], chosen, scale=scale, mask=mask)
    offsets, documents = (torch.as_tensor(np.asarray(part, dtype=np.int64), device=device) for part in batch.known)
    return contrastive_loss(
        queries,
        passages,
        labels=positive,
        doc_ids=torch.as_tensor(batch.passage_rows, device=device),
        positives=(offsets, documents),
        scale=scale,
        process_group=group,
    )
