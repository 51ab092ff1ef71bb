"""Targets and masks of a contrastive batch, as index lists from which the mask of one row chunk is made at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ance_fast.errors import ConfigError

Ragged = tuple[Tensor, Tensor]  # CSR: offsets int64 [rows + 1], values int64


def target_lists(labels: Tensor | tuple[Tensor, Tensor] | None, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The targets of `contrastive_loss` as CSR, checked."""
    batch, columns = q.shape[0], p.shape[0]
    every = torch.arange(batch + 1, device=q.device)
    if labels is None:
        if columns < batch:
            raise ConfigError(f"without labels row i's target is column i, but p has {columns} rows for {batch} of q")
        return every, every[:-1].clone()
    if isinstance(labels, Tensor):
        check_index("labels", labels, q)
        if labels.shape[0] != batch:
            raise ConfigError(f"labels must have one entry for each of the {batch} rows of q, got {labels.shape[0]}")
        labels = (every, labels)
    else:
        check_ragged("labels", labels, q)
    values = labels[1]
    if values.numel() and values.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= columns:
            raise ConfigError(f"labels must be columns 0 .. {columns - 1} of p, got {low if low < 0 else high}")
    return labels


def check_index(name: str, tensor: Tensor | None, q: Tensor) -> None:
    if tensor is None:
        return
    if tensor.ndim != 1 or tensor.dtype != torch.int64 or tensor.device != q.device:
        raise ConfigError(
            f"{name} must be 1-D int64 on {q.device}, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )


def check_ragged(name: str, ragged: Ragged, q: Tensor) -> None:
    if len(ragged) != 2:
        raise ConfigError(f"{name} must be a pair (offsets, values)")
    offsets, values = ragged
    check_index(f"{name} offsets", offsets, q)
    check_index(f"{name} values", values, q)
    if offsets.shape[0] != q.shape[0] + 1:
        raise ConfigError(f"{name} offsets must have {q.shape[0] + 1} entries, got {offsets.shape[0]}")
    if offsets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if int(offsets[0]) != 0 or int(offsets[-1]) != values.shape[0] or bool((offsets.diff() < 0).any()):
        raise ConfigError(f"{name} offsets must rise from 0 to its {values.shape[0]} values")


def expand(offsets: Tensor, total: int) -> Tensor:
    """Row of each value of a CSR list, int64 [total]."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=total)


@dataclass(frozen=True)
class Chunk:
    """Targets and masked keys of consecutive rows, numbered from the chunk's first row."""

    target_rows: Tensor
    target_columns: Tensor
    masked_rows: Tensor | None
    masked_keys: Tensor | None
    column_keys: Tensor | None
    keys: int

    def mask(self, rows: int) -> Tensor | None:
        """bool [rows, columns], True where a column's key is one of the row's masked keys; None without masks."""
        if self.masked_rows is None or self.masked_keys is None:
            return None
        table = torch.zeros((rows, self.keys), dtype=torch.bool, device=self.masked_rows.device)
        table[self.masked_rows, self.masked_keys] = True
        return table if self.column_keys is None else table[:, self.column_keys]


@dataclass(frozen=True)
class Problem:
    """Who is whose target, and who is masked: row r masks each column whose key is in `masked[r]`.

    Keys are documents, numbered densely (column_keys [N]), or columns themselves (column_keys None).
    """

    targets: Ragged
    masked: Ragged | None
    column_keys: Tensor | None
    keys: int

    def chunks(self, step: int) -> Iterator[tuple[int, Chunk]]:
        """(first row, chunk) for each `step` rows."""
        rows = self.targets[0].shape[0] - 1
        # One transfer for all chunk boundaries: reading offsets one by one would wait for the device each time.
        at = torch.arange(0, rows + step, step, device=self.targets[0].device).clamp(max=rows)
        target_at = self.targets[0][at].tolist()
        masked_at = None if self.masked is None else self.masked[0][at].tolist()
        target_rows = expand(self.targets[0], self.targets[1].shape[0])
        masked_rows = None if self.masked is None else expand(self.masked[0], self.masked[1].shape[0])
        for number, begin in enumerate(range(0, rows, step)):
            wanted = slice(target_at[number], target_at[number + 1])
            rows_masked = keys_masked = None
            if self.masked is not None and masked_rows is not None and masked_at is not None:
                hidden = slice(masked_at[number], masked_at[number + 1])
                rows_masked, keys_masked = masked_rows[hidden] - begin, self.masked[1][hidden]
            columns = self.targets[1][wanted]
            yield (
                begin,
                Chunk(target_rows[wanted] - begin, columns, rows_masked, keys_masked, self.column_keys, self.keys),
            )


def build_problem(
    targets: Ragged, doc_ids: Tensor | None, positive_offsets: Tensor | None, positive_documents: Tensor | None
) -> Problem:
    """Rows against columns: a row masks the documents of its targets and its positives that occur in some column."""
    if doc_ids is None:
        return Problem(targets, None, None, 0)
    documents, column_keys = torch.unique(doc_ids, return_inverse=True)
    rows, keys = expand(targets[0], targets[1].shape[0]), column_keys[targets[1]]
    if positive_offsets is not None and positive_documents is not None and documents.numel():
        found = torch.searchsorted(documents, positive_documents).clamp(max=documents.shape[0] - 1)
        present = documents[found] == positive_documents
        rows = torch.cat([rows, expand(positive_offsets, positive_documents.shape[0])[present]])
        keys = torch.cat([keys, found[present]])
    masked = group(rows, keys, targets[0].shape[0] - 1)
    return Problem(targets, masked, column_keys, documents.shape[0])


def group(rows: Tensor, values: Tensor, count: int) -> Ragged:
    """CSR of (row, value) pairs in any order; the values of a row keep their order."""
    order = torch.argsort(rows, stable=True)
    offsets = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=count), 0, out=offsets[1:])
    return offsets, values[order]


def transpose(problem: Problem, columns: int) -> tuple[Tensor, Problem]:
    """Target columns against rows: the anchors (ascending columns, int64 [A]) and the problem with anchors as rows.

    An anchor masks the rows that mask the anchor's column.
    """
    offsets, target_columns = problem.targets
    rows = offsets.shape[0] - 1
    anchors, anchor_of = torch.unique(target_columns, return_inverse=True)
    targets = group(anchor_of, expand(offsets, target_columns.shape[0]), anchors.shape[0])
    if problem.masked is None or problem.column_keys is None:
        return anchors, Problem(targets, None, None, 0)
    masking_rows = expand(problem.masked[0], problem.masked[1].shape[0])
    by_key, rows_of_key = group(problem.masked[1], masking_rows, problem.keys)
    key = problem.column_keys[anchors]
    sizes = by_key.diff()[key]
    starts = torch.zeros(anchors.shape[0] + 1, dtype=torch.int64, device=anchors.device)
    torch.cumsum(sizes, 0, out=starts[1:])
    total = int(starts[-1])
    within = torch.arange(total, device=anchors.device) - torch.repeat_interleave(starts[:-1], sizes, output_size=total)
    picked = rows_of_key[torch.repeat_interleave(by_key[key], sizes, output_size=total) + within]
    return anchors, Problem(targets, (starts, picked), None, rows)
