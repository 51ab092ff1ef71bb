"""Which rows of a corpus each shard of embeddings holds, and what it is made from.

A shard is known by a digest of the tokens it is made from, not by its number. That is what lets a grown corpus keep the
shards of its old rows, and a changed one be told apart, however the token store was cut into files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Rows start..stop of the corpus (stop not included); `content` is their `content_digest`."""

    number: int
    start: int
    stop: int
    content: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"embeddings-{self.number:05d}.npy"


def plan_shards(
    rows: int, shard_rows: int, digest: Callable[[int, int], str], keep: Sequence[Shard] = ()
) -> list[Shard]:
    """`keep` followed by shards of `shard_rows` rows (the last one shorter) up to `rows` rows."""
    shards = list(keep)
    first = shards[-1].stop if shards else 0
    for start in range(first, rows, shard_rows):
        stop = min(start + shard_rows, rows)
        shards.append(Shard(len(shards), start, stop, digest(start, stop)))
    return shards


def first_difference(shards: Sequence[Shard], rows: int, digest: Callable[[int, int], str]) -> str | None:
    """How a corpus of `rows` rows differs from the one `shards` are of, None if it begins with the same rows."""
    for shard in shards:
        if shard.stop > rows:
            return f"{shards[-1].stop} passages then, {rows} now"
        if digest(shard.start, shard.stop) != shard.content:
            return f"rows {shard.start} to {shard.stop - 1} held other ids or tokens"
    return None


def content_digest(store: TokenStore, start: int, stop: int) -> str:
    """BLAKE2b (128 bits) over the ids and tokens of rows start..stop: the same however the store is cut into shards."""
    id_lengths, ids, lengths, tokens = parts = [hashlib.blake2b(digest_size=16) for _ in range(4)]
    for chunk in store.ids.arrow.slice(start, stop - start).chunks:
        ends, text = _utf8(chunk)
        id_lengths.update(np.diff(ends).data)
        ids.update(text.data)
    for values, offsets in _token_pieces(store, start, stop):
        lengths.update(np.diff(offsets).astype(np.int64).data)
        tokens.update(np.ascontiguousarray(values).data)
    return hashlib.blake2b(b"".join(part.digest() for part in parts), digest_size=16).hexdigest()


def settings_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "pooling 'cls', now 'mean'" for every entry that differs, nested ones with dotted names."""
    before, after = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name} {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def json_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as they come back from a file. Raises `ConfigError` if JSON cannot hold them."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(settings), sort_keys=True))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings of an encoding job must be plain values ({error})") from error
    return plain


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def _utf8(chunk: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [n + 1], bytes) of a large_string array, as they lie in Arrow memory."""
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    text = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return ends, text[ends[0] : ends[-1]]


def _token_pieces(store: TokenStore, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(values, offsets) of rows start..stop, shard of the store by shard, as views."""
    first = 0
    for values, offsets in store.shards:
        last = first + len(offsets) - 1
        low, high = max(start, first) - first, min(stop, last) - first
        if low < high:
            yield values[offsets[low] : offsets[high]], offsets[low : high + 1]
        first = last
