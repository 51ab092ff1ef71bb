"""Token-store rows to packed batches, without padding.

A packed batch is one long row of tokens with the boundaries of its sequences beside it. `Packer.batches` sorts each
window of requested rows by length and cuts it greedily at a token budget, so batches have nearly equal cost and
sequences of one length are adjacent; `Packer.pack` takes exactly the rows it is given, in their order. The work is done
by the compiled token packer (csrc/token_packer.h) with the GIL released.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ance_fast.errors import ConfigError, MissingDependencyError

Shard = tuple[npt.NDArray[Any], npt.NDArray[Any]]
Rows = npt.NDArray[np.int64]

# Small batches are packed this many tokens at a time: the calls cost more than the tokens.
GROUP_TOKENS = 16384


class TokenTable(Protocol):
    """Anything that holds token lists in shards; `TokenStore` does."""

    @property
    def shards(self) -> Sequence[Shard]:
        """Pairs of values (uint16 or int32, 1-D) and offsets (int32 or int64, [rows + 1])."""
        ...

    @property
    def lengths(self) -> npt.NDArray[Any]:
        """Tokens of each row, [rows]."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class PackedBatch:
    """B sequences of T tokens in all, one after the other.

    `rows` says which entry of the caller's request each sequence is: `result[batch.rows] = encoder(batch)` puts the
    results back in the order of the request. `host_offsets` is `cu_seqlens` on the host (made from it when left out),
    so that reading lengths never waits for a device. `for_queries`: an encoder of two towers takes its query tower.
    """

    input_ids: torch.Tensor  # int64 [T]
    position_ids: torch.Tensor  # int64 [T], from position_offset in each sequence
    cu_seqlens: torch.Tensor  # int32 [B + 1], starts with 0, ends with T
    max_seqlen: int
    rows: Rows  # int64 [B]
    host_offsets: npt.NDArray[np.int32] | None = None
    for_queries: bool = False

    def __post_init__(self) -> None:
        if self.host_offsets is None:
            object.__setattr__(self, "host_offsets", self.cu_seqlens.cpu().numpy())

    def __len__(self) -> int:
        return int(self.cu_seqlens.shape[0]) - 1

    @property
    def lengths(self) -> Rows:
        """Tokens of each sequence, int64 [B], from host memory."""
        assert self.host_offsets is not None
        return np.diff(self.host_offsets).astype(np.int64)

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """The same batch with its tensors on `device`; `rows` and the lengths stay on the host."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking),
        )


def ragged(token_lists: Sequence[Sequence[int]]) -> Shard:
    """One in-memory shard (values int32 [T], offsets int64 [rows + 1]) from lists of token ids."""
    offsets = np.zeros(len(token_lists) + 1, dtype=np.int64)
    np.cumsum([len(tokens) for tokens in token_lists], out=offsets[1:])
    values = np.fromiter(itertools.chain.from_iterable(token_lists), dtype=np.int32, count=int(offsets[-1]))
    return values, offsets


class Packer:
    """Packs rows of a token table; rows are numbered over its concatenated shards.

    position_offset: position id of each sequence's first token (2 for RoBERTa).
    max_length: longer rows are cut to this many tokens; with `keep_last` the last of them is the row's own last token,
        which is the closing special token of a tokenised text.
    pin_memory: pack into page-locked memory, from which a GPU copies while the host goes on.

    The arrays of the table stay referenced and are never copied. Raises ConfigError for shards of another type, offsets
    that leave their values, or settings out of range; IndexError for a row the table does not have.
    """

    def __init__(
        self,
        table: TokenTable | Sequence[Shard],
        *,
        position_offset: int = 0,
        max_length: int | None = None,
        keep_last: bool = True,
        pin_memory: bool = False,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length is {max_length}; it must be at least 1, or None for no cut")
        if position_offset < 0:
            raise ConfigError(f"position_offset is {position_offset}; it must not be negative")
        try:
            from ance_fast import _C
        except ImportError as error:
            raise MissingDependencyError(
                f"packing needs the compiled part of ance_fast, which does not import ({error}); "
                "reinstall the package with a C++17 compiler present"
            ) from error
        shards = table if isinstance(table, Sequence) else table.shards
        try:
            self._engine = _C.TokenPacker(list(shards), max_length=max_length or 0, keep_last=keep_last)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the token table cannot be packed: {error}") from error
        self.position_offset = position_offset
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._engine)

    def lengths(self, rows: npt.NDArray[Any] | Sequence[int] | None = None) -> Rows:
        """Tokens of each requested row after the cut at max_length, int64 [n]; all rows by default."""
        return self._engine.lengths(self._request(rows))

    def batches(
        self,
        rows: npt.NDArray[Any] | Sequence[int] | None = None,
        *,
        token_budget: int = 1024,
        window: int = 65536,
        max_sequences: int = 4096,
    ) -> Iterator[PackedBatch]:
        """Every requested row (all by default; any order, repeats allowed) once, in batches of similar length.

        token_budget: tokens of a batch at most; a longer row is a batch of its own.
        window: rows that are sorted together by descending length; 0 keeps the order of the request.
        max_sequences: rows of a batch at most, which bounds batches of very short or empty rows.
        """
        for name, value, least in (
            ("token_budget", token_budget, 1),
            ("window", window, 0),
            ("max_sequences", max_sequences, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        request = self._request(rows)
        # Planned before the first batch is asked for, so that a wrong row is reported by the call that names it.
        order, starts = self._engine.plan(
            request, token_budget=token_budget, window=window, max_sequences=max_sequences
        )
        chosen = request[order]
        tokens = np.add.reduceat(self._engine.lengths(chosen), starts[:-1]) if len(starts) > 1 else starts[:0]
        return (
            batch
            for begin, end in _groups(tokens)
            for batch in self._packed(chosen, order, starts[begin : end + 1], tokens[begin:end])
        )

    def pack(self, rows: npt.NDArray[Any] | Sequence[int]) -> PackedBatch:
        """Exactly these rows in this order as one batch."""
        request = self._request(rows)
        tokens = self._engine.lengths(request).sum(keepdims=True)
        (batch,) = self._packed(request, np.arange(len(request)), np.array([0, len(request)]), tokens)
        return batch

    def _request(self, rows: npt.NDArray[Any] | Sequence[int] | None) -> Rows:
        if rows is None:
            return np.arange(len(self), dtype=np.int64)
        request = np.asarray(rows)
        if request.ndim != 1 or (request.size and request.dtype.kind not in "iu"):
            raise ConfigError(f"rows must be a 1-D list of integers, got {request.dtype} of shape {request.shape}")
        return np.ascontiguousarray(request, dtype=np.int64)

    def _packed(self, chosen: Rows, picked: Rows, starts: Rows, tokens: Rows) -> Iterator[PackedBatch]:
        """A batch for each range of `starts` [n + 1]: rows of `chosen`, which are the entries `picked` of the request.

        tokens [n]: how many each batch has. All are views of one allocation and of one call: at a thousand tokens a
        batch it is these that take the time.
        """
        first, last = int(starts[0]), int(starts[-1])
        both = torch.empty(2, int(tokens.sum()), dtype=torch.int64, pin_memory=self._pin_memory)
        offsets = torch.empty(last - first + len(tokens), dtype=torch.int32, pin_memory=self._pin_memory)
        arrays, host = both.numpy(), offsets.numpy()
        longest = self._engine.pack(
            chosen[first:last],
            starts - first,
            ids=arrays[0],
            positions=arrays[1],
            cu_seqlens=host,
            position_offset=self.position_offset,
        )
        sizes, ranges, at = tokens.tolist(), itertools.pairwise(starts.tolist()), 0
        parts = zip(both[0].split(sizes), both[1].split(sizes), longest, ranges, strict=True)
        for ids, positions, most, (begin, end) in parts:
            after = at + end - begin + 1
            yield PackedBatch(ids, positions, offsets[at:after], most, picked[begin:end], host[at:after])
            at = after


def _groups(tokens: Rows) -> Iterator[tuple[int, int]]:
    """Ranges of successive batches that are packed together: up to GROUP_TOKENS in all, or one batch."""
    ends = np.cumsum(tokens)
    begin = 0
    while begin < len(tokens):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + GROUP_TOKENS, side="right")))
        yield begin, end
        begin = end
