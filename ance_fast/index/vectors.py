"""Embeddings of any accepted form as checked float32 blocks.

Accepted: NumPy arrays and torch tensors [n, dim] of a floating type (memory-mapped ones are read block by block), and
embedding shards, that is any object with `ids` that iterates, directly or by `iter_batches()`, over arrays [m, dim].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError

BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class VectorSource:
    """`count` vectors of `dim` numbers; `blocks()` starts over each time and yields arrays [m <= 65,536, dim]."""

    count: int
    dim: int
    blocks: Callable[[], Iterator[np.ndarray]]
    ids: Any = None
    fingerprint: str | None = None


def vector_source(embeddings: Any) -> VectorSource:
    """Wrap `embeddings`. Raises `ConfigError` if they are not [n, dim] of a floating type."""
    if hasattr(embeddings, "ids"):
        return _shard_source(embeddings)
    array = as_array(embeddings)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ConfigError(f"embeddings have shape {list(array.shape)}; expected [vectors, dimensions]")
    return VectorSource(len(array), array.shape[1], lambda: _slices(array))


def as_array(values: Any) -> np.ndarray:
    """A NumPy view (or host copy) of an array, tensor or nested list. Raises `ConfigError` unless floating."""
    if type(values).__module__.partition(".")[0] == "torch":
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ConfigError(f"embeddings are not a rectangular array ({error})") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"embeddings are of type {array.dtype}; expected float32 or float16")
    return array


def prepared_blocks(
    source: VectorSource, metric: str, name: Callable[[int], str], *, what: str = "document"
) -> Iterator[np.ndarray]:
    """float32 C-contiguous blocks, L2-normalised for the metric "cosine", every number finite.

    Raises:
        ConfigError: NaN or infinity, naming the first row by `name`; blocks of another width; not a row an id.
    """
    start = 0
    for block in source.blocks():
        if block.ndim != 2 or block.shape[1] != source.dim:
            raise ConfigError(f"rows {start}..: block of shape {list(block.shape)}, expected [rows, {source.dim}]")
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(block, dtype=np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ConfigError(f"the vector of {what} {name(row)} (row {row}) holds NaN or infinity; encode it again")
        start += len(block)
        yield normalized(block) if metric == "cosine" else block
    if start != source.count:
        raise ConfigError(f"the shards hold {start} vectors for {source.count} ids; encode the corpus again")


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Rows of float32 [n, dim] divided by their L2 norm (float64 sums: no overflow); zero rows stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    norms[norms == 0] = 1.0
    unit: np.ndarray = (vectors / norms[:, None]).astype(np.float32)
    return unit


def query_matrix(queries: Any, dim: int, metric: str) -> np.ndarray:
    """Queries [dim] or [n, dim] as prepared float32 [n, dim]. Raises `ConfigError` on another dim, NaN or infinity."""
    array = as_array(queries)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != dim:
        raise ConfigError(f"queries have shape {list(np.shape(queries))}, the index has {dim} dimensions")
    source = VectorSource(len(array), dim, lambda: iter((array,)))
    return next(iter(prepared_blocks(source, metric, str, what="query")))


def sample(source: VectorSource, blocks: Iterator[np.ndarray], size: int, seed: int) -> np.ndarray:
    """`size` distinct rows drawn by `seed`, in row order, float32 [size, dim]; holds one block at a time."""
    if size >= source.count:
        return np.concatenate(list(blocks))
    rows = np.sort(np.random.default_rng(seed).choice(source.count, size, replace=False))
    parts, start = [], 0
    for block in blocks:
        low, high = np.searchsorted(rows, [start, start + len(block)])
        parts.append(block[rows[low:high] - start])
        start += len(block)
    return np.concatenate(parts)


def _slices(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[start : start + BLOCK_ROWS] for start in range(0, len(array), BLOCK_ROWS))


def _shard_source(shards: Any) -> VectorSource:
    def blocks() -> Iterator[np.ndarray]:
        for batch in shards.iter_batches() if hasattr(shards, "iter_batches") else iter(shards):
            yield from _slices(as_array(batch))

    first = next(blocks(), None)
    dim = getattr(shards, "dim", None) or (first.shape[1] if first is not None and first.ndim == 2 else 0)
    if not dim:
        raise ConfigError("the embedding shards are empty; encode the corpus first")
    return VectorSource(len(shards.ids), int(dim), blocks, shards.ids, getattr(shards, "fingerprint", None))
