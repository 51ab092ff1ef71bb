"""Targets and masks of a contrastive batch, as lists that a kernel walks through row by row.

Nothing waits for the device: sizes come from shapes, and keys are numbered by sorting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.interchange import as_tensor
from ance_fast.ops.loss_wiring import readable

Ragged = tuple[Tensor, Tensor]  # CSR: offsets int64 [rows + 1], values int64


def target_lists(labels: Tensor | Ragged | None, q: Tensor, p: Tensor) -> Ragged:
    """The targets of `contrastive_loss` as CSR; `check_values` looks at what stands in them."""
    batch, columns = q.shape[0], p.shape[0]
    every = torch.arange(batch + 1, device=q.device)
    if labels is None:
        if columns < batch:
            raise ConfigError(f"without labels row i's target is column i, but p has {columns} rows for {batch} of q")
        return every, every[:-1]
    if not isinstance(labels, tuple | list):
        labels = as_tensor("labels", labels)
        check_index("labels", labels, q)
        if labels.shape[0] != batch:
            raise ConfigError(f"labels must have one entry for each of the {batch} rows of q, got {labels.shape[0]}")
        return every, labels
    return check_ragged("labels", labels, q)


def check_index(name: str, tensor: Tensor | None, q: Tensor) -> None:
    if tensor is None:
        return
    if tensor.ndim != 1 or tensor.dtype != torch.int64 or tensor.device != q.device:
        raise ConfigError(
            f"{name} must be 1-D int64 on {q.device}, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )


def check_ragged(name: str, ragged: Ragged, q: Tensor) -> Ragged:
    if len(ragged) != 2:
        raise ConfigError(f"{name} must be a pair (offsets, values)")
    offsets, values = (as_tensor(name, array) for array in ragged)
    check_index(f"{name} offsets", offsets, q)
    check_index(f"{name} values", values, q)
    if offsets.shape[0] != q.shape[0] + 1:
        raise ConfigError(f"{name} offsets must have {q.shape[0] + 1} entries, got {offsets.shape[0]}")
    return offsets, values


def check_offsets(name: str, ragged: Ragged) -> None:
    """Raise ConfigError for offsets that a kernel would follow out of its values. CPU tensors: it looks into them."""
    offsets, values = ragged
    if int(offsets[0]) != 0 or int(offsets[-1]) != values.shape[0] or bool((offsets.diff() < 0).any()):
        raise ConfigError(f"{name} offsets must rise from 0 to its {values.shape[0]} values")


def check_columns(targets: Tensor, columns: int) -> None:
    """Raise ConfigError for targets that are no column. A CPU tensor: it looks into it."""
    if targets.shape[0]:
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= columns:
            raise ConfigError(f"labels must be columns 0 .. {columns - 1} of p, got {low if low < 0 else high}")


def check_values(labels: Tensor | Ragged | None, targets: Ragged, positives: Ragged | None, columns: int) -> None:
    """Both checks of what the caller gave: `labels`, from which the targets were made, and `positives`.

    On the CPU only: a look at device memory would wait for it.
    """
    if not readable(targets[0]):
        return
    if isinstance(labels, tuple | list):
        check_offsets("labels", targets)
    if labels is not None:
        check_columns(targets[1], columns)
    if positives is not None:
        check_offsets("positives", positives)


def expand(offsets: Tensor, total: int) -> Tensor:
    """Row of each value of a CSR list, int64 [total]."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=total)


@dataclass(frozen=True)
class Masks:
    """Row r is not compared with the columns that hold a key of `hidden[r]`; `holders[key]` are these, ascending."""

    hidden: Ragged
    holders: Ragged


@dataclass(frozen=True)
class Problem:
    """Who is whose target, and who is masked, for consecutive rows. Offsets may start anywhere in their values."""

    targets: Ragged
    masks: Masks | None

    def rows(self, begin: int, end: int) -> Problem:
        """The same for rows begin .. end: views, nothing is copied."""
        at = slice(begin, end + 1)
        masks = self.masks
        if masks is not None:
            masks = Masks((masks.hidden[0][at], masks.hidden[1]), masks.holders)
        return Problem((self.targets[0][at], self.targets[1]), masks)


def build_problem(
    targets: Ragged, doc_ids: Tensor | None, positive_offsets: Tensor | None, positive_documents: Tensor | None
) -> Problem:
    """Rows against columns: keys are documents, and a row masks those of its targets and its positives."""
    targets = (targets[0].contiguous(), targets[1].contiguous())  # kernels take addresses
    if doc_ids is None:
        return Problem(targets, None)
    columns = doc_ids.shape[0]
    documents, holders = doc_ids.sort(stable=True)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[1:] = documents[1:] != documents[:-1]
    key_of_place = first.cumsum(0) - 1
    # Key `columns`, which nothing holds, stands for documents that are in no column.
    offsets = torch.searchsorted(key_of_place, torch.arange(columns + 2, device=doc_ids.device))
    key_of_column = torch.empty_like(holders).scatter_(0, holders, key_of_place)
    hidden = (targets[0], key_of_column[targets[1]])
    if positive_offsets is not None and positive_documents is not None:
        if columns:
            place = torch.searchsorted(documents, positive_documents).clamp(max=columns - 1)
            keys = torch.where(documents[place] == positive_documents, key_of_place[place], columns)
        else:
            keys = torch.zeros_like(positive_documents)
        hidden = merge(hidden, (positive_offsets, keys))
    return Problem(targets, Masks(hidden, (offsets, holders)))


def merge(first: Ragged, second: Ragged) -> Ragged:
    """Each row's values of `first`, then those of `second`; both start at offset 0."""
    sizes = first[1].shape[0], second[1].shape[0]
    values = first[1].new_empty(sum(sizes))
    numbers = [torch.arange(size, device=values.device) for size in sizes]
    values[numbers[0] + second[0][expand(first[0], sizes[0])]] = first[1]
    values[numbers[1] + first[0][expand(second[0], sizes[1]) + 1]] = second[1]
    return first[0] + second[0], values


def group(keys: Tensor, values: Tensor, count: int) -> Ragged:
    """CSR of the values of each key 0 .. count - 1; the values of a key keep their order."""
    keys, order = keys.sort(stable=True)
    offsets = torch.searchsorted(keys, torch.arange(count + 1, device=keys.device))
    return offsets, values[order]


def transpose(problem: Problem, columns: int) -> tuple[Tensor, Tensor, Problem]:
    """Target columns against rows: anchors int64 [A], how many they are (0-dim), the problem with anchors as rows.

    Anchors are those of the `columns` that are a target of some row, ascending. On a device their number is known there
    alone, so the last of them is repeated, as rows without targets, to the most there can be. An anchor masks the rows
    that mask the anchor's column.
    """
    offsets, target_columns = problem.targets
    ordered, order = target_columns.sort(stable=True)
    rows = expand(offsets, ordered.shape[0])[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    count, place = first.sum(), first.cumsum(0) - 1
    most = int(count) if readable(ordered) else min(ordered.shape[0], columns)
    anchors = ordered[-1:].repeat(most).scatter_(0, place.clamp(max=most - 1), ordered)
    numbers = torch.arange(most + 1, device=ordered.device)
    targets = torch.searchsorted(place, numbers), rows
    if problem.masks is None:
        return anchors, count, Problem(targets, None)
    hidden, (key_offsets, holders) = problem.masks.hidden, problem.masks.holders
    keys = key_offsets.shape[0] - 1
    key_of_column = torch.empty_like(holders).scatter_(0, holders, expand(key_offsets, holders.shape[0]))
    by_key = group(hidden[1], expand(hidden[0], hidden[1].shape[0]), keys)
    return anchors, count, Problem(targets, Masks((numbers, key_of_column[anchors]), by_key))
