"""What every form of the top-k search is asked: queries, k, and which positions may be returned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.contrastive_problem import Ragged, check_offsets


@dataclass(frozen=True)
class Hidden:
    """What a tile of vectors may not return: columns for all queries, and (row, column) pairs ordered by row."""

    columns: Tensor | None  # bool [m]
    rows: Tensor  # int64 [pairs]
    column: Tensor  # int64 [pairs]

    def apply(self, scores: Tensor, block: slice, value: float) -> None:
        """Write `value` where `scores`, of the queries `block` by the columns of the tile, may not be returned."""
        if self.columns is not None:
            scores.masked_fill_(self.columns, value)
        here = (self.rows >= block.start) & (self.rows < block.stop)
        scores[self.rows[here] - block.start, self.column[here]] = value


@dataclass(frozen=True)
class Problem:
    """queries [n, D] of a floating dtype; allow bool [N] or None (all); exclude CSR (offsets int64 [n + 1], positions
    int64, ascending within a row) or None; all on one device."""

    queries: Tensor
    k: int
    allow: Tensor | None
    exclude: Ragged | None

    @property
    def rows(self) -> int:
        return self.queries.shape[0]

    def only(self, rows: Tensor) -> Problem:
        """The same for the queries `rows` alone."""
        if self.exclude is None:
            return Problem(self.queries[rows], self.k, self.allow, None)
        offsets, positions = self.exclude
        lengths = offsets.diff()[rows]
        ends = lengths.cumsum(0)
        places = torch.arange(int(lengths.sum()), device=rows.device)
        places += torch.repeat_interleave(offsets[rows] - (ends - lengths), lengths)
        lists = torch.cat([ends.new_zeros(1), ends]), positions[places]
        return Problem(self.queries[rows], self.k, self.allow, lists)

    def hidden(self, first: int, count: int) -> Hidden:
        """Of the tile of vectors first .. first + count."""
        columns = None if self.allow is None else ~self.allow[first : first + count]
        if self.exclude is None:
            none = torch.empty(0, dtype=torch.int64, device=self.queries.device)
            return Hidden(columns, none, none)
        offsets, positions = self.exclude
        rows = torch.repeat_interleave(torch.arange(self.rows, device=offsets.device), offsets.diff())
        here = (positions >= first) & (positions < first + count)
        return Hidden(columns, rows[here], positions[here] - first)


def sorted_lists(exclude: Ragged | None) -> Ragged | None:
    """The same lists, ascending within each row. Raises ConfigError for offsets that do not fit."""
    if exclude is None:
        return None
    check_offsets("exclude", exclude)
    offsets, positions = exclude
    rows = torch.repeat_interleave(torch.arange(offsets.shape[0] - 1, device=offsets.device), offsets.diff())
    order = positions.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    return offsets.contiguous(), positions[order]


def check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
