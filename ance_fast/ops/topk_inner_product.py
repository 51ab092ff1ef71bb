"""Exact top-k by inner product, streamed over blocks of vectors, with ties resolved.

One GEMM a block and a merge with the best k so far: O(n (k + chunk)) memory beside the vectors, whatever their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.ops.dispatch import dispatch
from ance_fast.ops.loss_wiring import accumulate_dtype, check_embeddings

BLOCK_BYTES = 64 * 2**20  # of scores at once


def topk_inner_product(
    queries: Tensor, vectors: Tensor, k: int, *, chunk: int = 16384, allow: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The k vectors of largest inner product with each query.

    queries: [n, D]; vectors: [N, D], same dtype and device. chunk: vectors scored at a time. allow: bool [N], True
    where a vector may be returned (default all).

    Returns (scores fp32 [n, k] descending, positions int64 [n, k]), ordered by (-score, position), also at the k-th
    place: of equal scores the smallest positions are returned. Past the end: -inf and -1. Scores are computed and
    ranked in fp32 (fp64 for fp64 inputs) whatever autocast says; a NaN score ranks as -inf and is never returned. Not
    differentiable. Raises ConfigError for wrong shapes, dtypes, devices, or k < 1.
    """
    check_embeddings("queries", queries, ("n", "D"))
    check_embeddings("vectors", vectors, ("N", "D"), like=queries)
    if queries.shape[1] != vectors.shape[1]:
        raise ConfigError(f"queries and vectors differ in width: {list(queries.shape)} and {list(vectors.shape)}")
    if k < 1 or chunk < 1:
        raise ConfigError(f"k and chunk must be at least 1, got k={k}, chunk={chunk}")
    if allow is not None and (
        allow.dtype != torch.bool or allow.shape != vectors.shape[:1] or allow.device != queries.device
    ):
        raise ConfigError(
            f"allow must be bool [{vectors.shape[0]}] on {queries.device}, got {allow.dtype} {list(allow.shape)} "
            f"on {allow.device}"
        )
    dispatch("topk_inner_product", queries.device, queries.dtype, backend)
    scores, positions = _topk(queries.detach(), vectors.detach(), k, chunk, allow)
    return scores, positions


@torch.library.custom_op("ance_fast::topk_inner_product", mutates_args=())
def _topk(queries: Tensor, vectors: Tensor, k: int, chunk: int, allow: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = queries.new_full((queries.shape[0], k), -torch.inf, dtype=torch.float32)
    positions = torch.full((queries.shape[0], k), -1, dtype=torch.int64, device=queries.device)
    rows = max(1, BLOCK_BYTES // (4 * (min(chunk, max(vectors.shape[0], 1)) + k)))
    with torch.autocast(queries.device.type, enabled=False):
        for begin in range(0, queries.shape[0], rows):
            block = slice(begin, begin + rows)
            scores[block], positions[block] = _search(queries[block], vectors, k, chunk, allow)
    return scores, positions


@_topk.register_fake
def _(queries: Tensor, vectors: Tensor, k: int, chunk: int, allow: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape, dtype=torch.int64)


def _search(queries: Tensor, vectors: Tensor, k: int, chunk: int, allow: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(queries)
    queries = queries.to(dtype)
    best = queries.new_full((queries.shape[0], k), -torch.inf)
    positions = torch.full_like(best, -1, dtype=torch.int64)
    for begin in range(0, vectors.shape[0], chunk):
        scores = queries @ vectors[begin : begin + chunk].to(dtype).T
        scores.masked_fill_(scores.isnan(), -torch.inf)
        if allow is not None:
            scores.masked_fill_(~allow[begin : begin + chunk], -torch.inf)
        here = torch.arange(begin, begin + scores.shape[1], device=scores.device).expand_as(scores)
        best, positions = _keep(torch.cat([best, scores], 1), torch.cat([positions, here], 1), k)
    positions = torch.where(torch.isneginf(best), -1, positions)
    return best.float(), positions


def _keep(scores: Tensor, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k columns by (-score, column): columns that tie stand in order of position, so a stable choice suffices.

    torch.topk may return any of the scores that tie at the k-th place, so it only gives the threshold here.
    """
    threshold = scores.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, level = scores > threshold, scores == threshold
    missing = k - above.sum(1, keepdim=True)
    chosen = above | (level & (level.cumsum(1) <= missing))
    columns = chosen.nonzero()[:, 1].view(-1, k)
    scores, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return scores, positions.gather(1, columns.gather(1, order))
