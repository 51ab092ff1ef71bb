"""Exact top-k by inner product, with ties resolved: over a matrix, over tiles as they come, and over several devices.

Scores are made a tile at a time by GEMM and seen once: what beats a query's k-th best so far is kept, the rest is never
written anywhere. Memory is O(n k) and one tile of scores, whatever the number of vectors.

All forms select and order by (-score, position), whatever the order of the tiles. A score is what the GEMM of its tile
made of it: two vectors whose scores differ by no more than fp32 rounding may change places with the tiling. NaN and
-inf are never returned.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.contrastive_problem import Ragged, check_ragged
from ance_fast.ops.dispatch import dispatch
from ance_fast.ops.interchange import as_optional_tensor, as_tensor
from ance_fast.ops.loss_wiring import accumulate_dtype, check_embeddings, runs_eagerly, without_autocast
from ance_fast.ops.topk_keys import POSITIONS
from ance_fast.ops.topk_problem import Problem, check_k, sorted_lists

REFERENCE_SCORES = 2**24  # at once
TILE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def topk_inner_product(
    queries: Tensor,
    vectors: Tensor,
    k: int,
    *,
    allow: Tensor | None = None,
    exclude: Ragged | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k vectors of largest inner product with each query.

    queries: [n, D]; vectors: [N, D] on the same device, of any floating dtypes; tensors, or CuPy or NumPy arrays
    (memory-mapped too), taken without a copy. allow: bool [N], True where a vector may be returned (default all).
    exclude: CSR (offsets int64 [n+1], positions int64), the positions never returned for each query; those outside
    0 .. N-1 mean nothing. k: any number from 1.

    Returns (scores fp32 [n, k] descending, positions int64 [n, k]), ordered by (-score, position), also at the k-th
    place: of equal scores the smallest positions are returned. Past the end: -inf and -1. Scores are computed in fp32
    (fp64 if an input is fp64) whatever autocast says; on CUDA the products of queries and vectors of the same half
    precision are made in it and added up in fp32. NaN and -inf scores are never returned. Not differentiable. Raises
    ConfigError for wrong shapes, dtypes or devices, k < 1, and offsets that do not fit.

    Relations: `StreamingTopK` takes the vectors tile by tile; `merge_topk` joins the results of parts of a matrix.
    """
    queries, vectors = as_tensor("queries", queries), as_tensor("vectors", vectors)
    check_embeddings("queries", queries, ("n", "D"))
    check_embeddings("vectors", vectors, ("N", "D"))
    if vectors.device != queries.device:
        raise ConfigError(f"vectors are on {vectors.device}, queries on {queries.device}; move one of them")
    _check_width(queries, vectors)
    _check_rows(0, vectors.shape[0])
    check_k(k)
    allow = as_optional_tensor("allow", allow)
    _check_allow(allow, queries.device, vectors.shape[0])
    offsets, positions = (None, None) if exclude is None else check_ragged("exclude", exclude, queries)
    dtype = torch.promote_types(queries.dtype, vectors.dtype)
    chosen = dispatch("topk_inner_product", queries.device, dtype, backend)
    arguments = (queries.detach(), vectors.detach(), k, allow, offsets, positions, chosen)
    return _search(*arguments) if runs_eagerly(queries) else _search_op(*arguments)


class StreamingTopK:
    """`topk_inner_product` over vectors that arrive in tiles, in any order.

    queries: [n, D], fp32, fp16 or bf16, on the device where the search runs (fp64 is rounded to fp32). allow: bool [N],
    N the size of the whole matrix. exclude: as for `topk_inner_product`. Both are on the queries' device.

    Holds O(n k) numbers and one tile of scores. Not thread-safe. Raises ConfigError as `topk_inner_product` does.
    """

    def __init__(
        self,
        queries: Tensor,
        k: int,
        *,
        allow: Tensor | None = None,
        exclude: Ragged | None = None,
        backend: str = "auto",
    ) -> None:
        queries = as_tensor("queries", queries).detach()
        check_embeddings("queries", queries, ("n", "D"))
        check_k(k)
        queries = queries if queries.dtype in TILE_DTYPES else queries.float()
        allow = as_optional_tensor("allow", allow)
        _check_allow(allow, queries.device)
        lists = None if exclude is None else sorted_lists(check_ragged("exclude", exclude, queries))
        chosen = dispatch("topk_inner_product", queries.device, queries.dtype, backend)
        if chosen == "reference":
            raise ConfigError("backend 'reference' scores all vectors at once; use topk_inner_product for it")
        self._problem = Problem(queries, k, allow, lists)
        self._collector = _collector(chosen)(self._problem)

    def add(self, vectors: Any, first: int) -> None:
        """Search the tile vectors [m, D], rows first .. first+m of the matrix; add no row twice.

        fp32, fp16 or bf16, a tensor on any device or a NumPy array (memory-mapped too: read once, front to back).
        Raises ConfigError for another dtype or width, rows past the end of `allow`, or positions from 2^32 on.
        """
        vectors = as_tensor("vectors", vectors).detach()
        check_embeddings("vectors", vectors, ("m", "D"))
        if vectors.dtype not in TILE_DTYPES:
            raise ConfigError(f"vectors are {vectors.dtype}; a tile must be float32, float16 or bfloat16")
        _check_width(self._problem.queries, vectors)
        stop, allow = first + vectors.shape[0], self._problem.allow
        _check_rows(first, stop)
        if allow is not None and stop > allow.shape[0]:
            raise ConfigError(f"rows {first} .. {stop} go past the {allow.shape[0]} entries of allow")
        with without_autocast(self._problem.queries.device):
            self._collector.add(vectors, first)

    def result(self) -> tuple[Tensor, Tensor]:
        """(scores fp32 [n, k], positions int64 [n, k]) of all tiles so far, on the queries' device; more may follow."""
        return self._collector.result()


def merge_topk(parts: Iterable[tuple[Tensor, Tensor]], k: int | None = None) -> tuple[Tensor, Tensor]:
    """Join the results of searches over disjoint parts of a matrix: exact if every part was searched for k.

    parts: (scores [n, ki], positions int64 [n, ki], of the whole matrix; -inf and -1 past the end), on any devices.
    k: default the largest ki. Returns the same for the whole matrix, [n, k], on the first part's device. Raises
    ConfigError without parts or for shapes that differ in n.
    """
    pairs = [(as_tensor("scores", scores), as_tensor("positions", positions)) for scores, positions in parts]
    if not pairs:
        raise ConfigError("there are no parts to merge")
    rows, device = pairs[0][0].shape[0], pairs[0][0].device
    for scores, positions in pairs:
        if scores.ndim != 2 or scores.shape != positions.shape or scores.shape[0] != rows:
            raise ConfigError(
                f"parts must be scores and positions [{rows}, k] alike, got {list(scores.shape)} and "
                f"{list(positions.shape)}"
            )
    k = max(scores.shape[1] for scores, _ in pairs) if k is None else k
    check_k(k)
    scores = torch.cat([scores.to(device) for scores, _ in pairs], 1)
    positions = torch.cat([positions.to(device) for _, positions in pairs], 1)
    positions, order = positions.sort(dim=1)
    return _first(scores.gather(1, order), positions, k)


def topk_inner_product_reference(
    queries: Tensor, vectors: Tensor, k: int, *, allow: Tensor | None = None, exclude: Ragged | None = None
) -> tuple[Tensor, Tensor]:
    """What `topk_inner_product` computes, in plain torch: all scores, sorted; fp64 inputs are computed in fp64."""
    dtype = torch.promote_types(accumulate_dtype(queries), accumulate_dtype(vectors))
    problem = Problem(queries, k, allow, sorted_lists(exclude))
    hidden = problem.hidden(0, vectors.shape[0])
    everything = torch.arange(vectors.shape[0], device=queries.device)
    found = []
    rows = max(1, REFERENCE_SCORES // max(vectors.shape[0], 1))
    with without_autocast(queries.device):
        for begin in range(0, max(problem.rows, 1), rows):
            block = slice(begin, min(begin + rows, problem.rows))
            scores = queries[block].to(dtype) @ vectors.to(dtype).T
            scores.masked_fill_(scores.isnan(), -torch.inf)
            hidden.apply(scores, block, -torch.inf)
            found.append(_first(scores, everything.expand(scores.shape), k))
    scores, positions = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return scores, positions


def _first(scores: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k by (-score, position) of columns in the order of position; padded with -inf and -1."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, positions = scores[:, :k], positions.gather(1, order[:, :k])
    positions = positions.masked_fill(torch.isneginf(scores), -1)
    gap = (0, k - scores.shape[1])
    pad = torch.nn.functional.pad
    return pad(scores.float(), gap, value=-torch.inf), pad(positions, gap, value=-1)


class Collector(Protocol):
    """A form of the search: `add` takes checked tiles."""

    def add(self, vectors: Tensor, first: int) -> None: ...
    def result(self) -> tuple[Tensor, Tensor]: ...


@functools.cache
def _collector(backend: str) -> Callable[[Problem], Collector]:
    # Imported on use: each needs something that may not be installed.
    return importlib.import_module(f"ance_fast.ops.topk_inner_product_{_MODULES[backend]}").Collector


_MODULES = {"cpp": "cpu", "torch": "torch", "triton": "triton"}


def _search(
    queries: Tensor,
    vectors: Tensor,
    k: int,
    allow: Tensor | None,
    offsets: Tensor | None,
    positions: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    exclude = None if offsets is None or positions is None else (offsets, positions)
    if backend == "reference":
        return topk_inner_product_reference(queries, vectors, k, allow=allow, exclude=exclude)
    collector = _collector(backend)(Problem(queries, k, allow, sorted_lists(exclude)))
    with without_autocast(queries.device):
        collector.add(vectors, 0)
    return collector.result()


_search_op = torch.library.custom_op("ance_fast::topk_inner_product", _search, mutates_args=())


@_search_op.register_fake
def _(
    queries: Tensor,
    vectors: Tensor,
    k: int,
    allow: Tensor | None,
    offsets: Tensor | None,
    positions: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape, dtype=torch.int64)


def _check_width(queries: Tensor, vectors: Tensor) -> None:
    if queries.shape[1] != vectors.shape[1]:
        raise ConfigError(f"queries and vectors differ in width: {list(queries.shape)} and {list(vectors.shape)}")


def _check_rows(first: int, stop: int) -> None:
    if first < 0 or stop > POSITIONS:
        raise ConfigError(
            f"rows {first} .. {stop} are not in 0 .. 2^32; search parts of such a matrix apart, join with merge_topk"
        )


def _check_allow(allow: Tensor | None, device: torch.device, vectors: int | None = None) -> None:
    if allow is None:
        return
    wrong_size = allow.ndim != 1 or (vectors is not None and allow.shape[0] != vectors)
    if allow.dtype != torch.bool or wrong_size or allow.device != device:
        raise ConfigError(
            f"allow must be bool [{'N' if vectors is None else vectors}] on {device}, "
            f"got {allow.dtype} {list(allow.shape)} on {allow.device}"
        )
