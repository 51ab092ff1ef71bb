"""Embeddings of any accepted form as checked float32 blocks.

Accepted: NumPy arrays and torch tensors [n, dim] of a floating type (memory-mapped ones are read block by block), and
embedding shards, that is any object with `ids` that iterates, directly or by `iter_batches()`, over arrays [m, dim].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ance_fast.data.text_record import TextRecord
from ance_fast.errors import ConfigError

BLOCK_ROWS = 65_536
NORMALIZED_ROWS = 4096  # at once: the quotients are float64


@dataclass(frozen=True)
class VectorSource:
    """`count` vectors of `dim` numbers; `blocks()` starts over each time and yields arrays [m <= 65,536, dim].

    Attributes:
        parts: the arrays [m, dim] behind the blocks, in order: whole, as stored, without a copy.
        mean: float32 [dim] that was taken off the stored rows (`parts`) and that `blocks` puts back; None: nothing was.
        dtype: of the stored rows.
        document_separator: where a row is a chunk of a document, what stands before its number in its id.
    """

    count: int
    dim: int
    blocks: Callable[[], Iterator[np.ndarray]]
    parts: Callable[[], Iterator[Any]]
    dtype: np.dtype
    ids: Any = None
    fingerprint: str | None = None
    mean: np.ndarray | None = None
    document_separator: str | None = None
    text_record: TextRecord | None = None

    def stored(self) -> VectorSource:
        """The same rows as they are stored, the mean not put back."""
        slices = lambda: (piece for part in self.parts() for piece in _slices(as_array(part)))  # noqa: E731
        return replace(self, blocks=slices, mean=None)

    def in_slices(self, rows: int) -> VectorSource:
        """The same rows in blocks of at most `rows`."""
        whole = self.blocks
        return replace(self, blocks=lambda: (part for block in whole() for part in _slices(block, rows)))


def vector_source(embeddings: Any) -> VectorSource:
    """Wrap `embeddings`. Raises `ConfigError` if they are not [n, dim] of a floating type."""
    if hasattr(embeddings, "ids"):
        return _shard_source(embeddings)
    array = as_array(embeddings)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ConfigError(f"embeddings have shape {list(array.shape)}; expected [vectors, dimensions]")
    whole = embeddings if hasattr(embeddings, "dtype") else array
    return VectorSource(len(array), array.shape[1], lambda: _slices(array), lambda: iter((whole,)), array.dtype)


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
        bad = first_not_finite(block)
        if bad is not None:
            row = start + bad
            raise ConfigError(f"the vector of {what} {name(row)} (row {row}) holds NaN or infinity; encode it again")
        start += len(block)
        yield normalized(block) if metric == "cosine" else block
    if start != source.count:
        raise ConfigError(f"the shards hold {start} vectors for {source.count} ids; encode the corpus again")


def first_not_finite(block: np.ndarray) -> int | None:
    """The first row of float32 [m, dim] with NaN or infinity, None if there is none."""
    # A matrix-vector product sums each row at the speed of memory, twice that of `isfinite` on every number; a sum is
    # not finite when a number is not (or, rarely, when large numbers add up to infinity: looked at again).
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = np.flatnonzero(~np.isfinite(block @ np.ones(block.shape[1], dtype=np.float32)))
    bad = suspect[~np.isfinite(block[suspect]).all(axis=1)]
    return int(bad[0]) if len(bad) else None


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Rows of float32 [n, dim] divided by their L2 norm (float64 sums: no overflow); zero rows stay zero."""
    unit = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), NORMALIZED_ROWS):
        rows = vectors[start : start + NORMALIZED_ROWS]
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        norms[norms == 0] = 1.0
        unit[start : start + NORMALIZED_ROWS] = rows / norms[:, None]
    return unit


def query_matrix(queries: Any, dim: int, metric: str) -> np.ndarray:
    """Queries [dim] or [n, dim] as prepared float32 [n, dim]. Raises `ConfigError` on another dim, NaN or infinity."""
    array = as_array(queries)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != dim:
        raise ConfigError(f"queries have shape {list(np.shape(queries))}, the index has {dim} dimensions")
    source = VectorSource(len(array), dim, lambda: iter((array,)), lambda: iter((array,)), array.dtype)
    return next(iter(prepared_blocks(source, metric, str, what="query")))


def sample(source: VectorSource, blocks: Iterator[np.ndarray], size: int, seed: int) -> np.ndarray:
    """`size` distinct rows drawn by `seed`, in row order, float32 [size, dim]; holds one block beside them."""
    size = min(size, source.count)
    return taken(source, blocks, sample_rows(source.count, size, seed))


def sample_rows(count: int, size: int, seed: int) -> np.ndarray:
    """`size` distinct numbers below `count` drawn by `seed`, ascending, int64."""
    if size >= count:
        return np.arange(count)
    rows: np.ndarray = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    return rows


def taken(source: VectorSource, blocks: Iterator[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The rows `rows` (ascending) of `blocks`, float32 [len(rows), dim]."""
    found = np.empty((len(rows), source.dim), dtype=np.float32)
    start = 0
    for block in blocks:
        low, high = np.searchsorted(rows, [start, start + len(block)])
        found[low:high] = block[rows[low:high] - start]
        start += len(block)
    return found


def _slices(array: np.ndarray, rows: int | None = None) -> Iterator[np.ndarray]:
    step = rows or BLOCK_ROWS
    return (array[start : start + step] for start in range(0, len(array), step))


def _shard_source(shards: Any) -> VectorSource:
    def pieces() -> Iterator[Any]:
        yield from shards.iter_batches() if hasattr(shards, "iter_batches") else iter(shards)

    def blocks() -> Iterator[np.ndarray]:
        for piece in pieces():
            yield from _slices(as_array(piece))

    def stored() -> Iterator[Any]:
        return (rows for _, rows in shards.stored())

    mean = getattr(shards, "mean", None)
    parts = stored if hasattr(shards, "stored") else pieces
    first = next((part for part in parts() if len(part)), None)
    dim = getattr(shards, "dim", None) or (first.shape[1] if first is not None and np.ndim(first) == 2 else 0)
    if not dim:
        raise ConfigError("the embedding shards are empty; encode the corpus first")
    return VectorSource(
        len(shards.ids),
        int(dim),
        blocks,
        parts,
        np.dtype(np.float32) if first is None else as_array(first).dtype,
        ids=getattr(shards.ids, "arrow", shards.ids),
        fingerprint=getattr(shards, "fingerprint", None),
        mean=None if mean is None else np.ascontiguousarray(mean, dtype=np.float32),
        document_separator=getattr(shards, "document_separator", None),
        text_record=getattr(shards, "text_record", None),
    )
