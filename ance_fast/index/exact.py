"""Exact search: the vectors in blocks, in memory or mapped from files, on one device or several; streaming top-k.

Costs n * N * dim multiply-adds and no training. A search holds O(n k) numbers and one tile of scores, whatever the size
of the corpus; of blocks that stay on disk it also holds no more than a tile.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError
from ance_fast.index.mapped import MappedFile, write_npy
from ance_fast.index.selection import Selection

# Rows converted, or read from disk, at once.
TILE_ROWS = 16_384
# Queries searched in one pass: what the pass keeps of them.
QUERY_BYTES = 256 * 2**20
# A block made by `add` has room for an eighth of the rows there are: many small additions make few blocks.
GROWTH = 8
MIN_BLOCK_ROWS = 1024


@dataclass
class Block:
    """Rows first .. first + count of the corpus.

    Attributes:
        rows: tensor [capacity, dim] as stored.
        device: where the block is searched; where it lies too, unless it is mapped.
        file: the mapped file that `rows` are.
        read_only: `rows` must not be written to.
        lent: `rows` are the caller's.
        on_disk: only a tile of it is to be in memory at a time.
    """

    first: int
    count: int
    rows: Any
    device: str
    file: MappedFile | None = None
    read_only: bool = False
    lent: bool = False
    on_disk: bool = False


class ExactBackend:
    """Vectors [count, dim], each on one of `devices` (torch names; one may be named several times).

    dtype: of vectors that are added, "float32" or "float16". mean: float32 [dim], what was taken off all rows before
    they were stored, so that a score is stored.q + mean.q. normalize: rows are not normalised as stored; they are when
    they are searched.
    """

    name = "exact"

    def __init__(
        self,
        dim: int,
        devices: Sequence[str] = ("cpu",),
        *,
        dtype: str = "float32",
        mean: np.ndarray | None = None,
        normalize: bool = False,
    ) -> None:
        import torch

        for device in devices:
            if device.startswith("cuda") and not torch.cuda.is_available():
                raise ConfigError(f"device {device!r} asked for, but torch sees no CUDA device; use device='cpu'")
        self.dim = dim
        self.dtype = dtype
        self.mean = mean
        self.normalize = normalize
        self._devices = tuple(devices)
        self._blocks: list[Block] = []
        self._reserved: list[Block] = []

    def __len__(self) -> int:
        return self._blocks[-1].first + self._blocks[-1].count if self._blocks else 0

    def reserve(self, count: int) -> None:
        """Allocate room for `count` rows, an equal share of consecutive rows on each device."""
        shares = np.diff(np.linspace(0, count, len(self._devices) + 1).astype(int))
        self._reserved = [
            Block(0, 0, self._empty(int(share), device), device)
            for share, device in zip(shares, self._devices, strict=True)
            if share
        ]

    def add(self, block: np.ndarray) -> None:
        """Append prepared float32 [m, dim]."""
        self.add_stored(block if self.mean is None else block - self.mean)

    def add_stored(self, block: np.ndarray) -> None:
        """Append rows [m, dim] as they are stored: the mean already taken off."""
        source = _tensor(block)
        while len(source):
            room = self._room(len(source))
            taken = min(len(source), len(room.rows) - room.count)
            room.rows[room.count : room.count + taken] = source[:taken]
            room.count += taken
            source = source[taken:]

    def attach(self, rows: Any, file: MappedFile | None = None, *, lent: bool = False, on_disk: bool = False) -> None:
        """Append `rows` [m, dim], an array or tensor, without a copy."""
        read_only = isinstance(rows, np.ndarray) and not rows.flags.writeable
        tensor = _tensor(rows)
        device = self._emptiest() if tensor.device.type == "cpu" else str(tensor.device)
        self._blocks.append(Block(len(self), len(rows), tensor, device, file, read_only, lent, on_disk))

    def check_params(self, params: Mapping[str, int]) -> None:
        """Raises `ConfigError` on any parameter: exact search has none."""
        if params:
            raise ConfigError(f"search parameter {next(iter(params))!r} does not apply to Flat; it takes none")

    def search(
        self, queries: np.ndarray, k: int, selection: Selection, params: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows of each of `queries` [n, dim] that `selection` allows, by (-score, position)."""
        import torch

        self.check_params(params)
        scores = np.empty((len(queries), k), dtype=np.float32)
        positions = np.empty((len(queries), k), dtype=np.int64)
        # float32 queries, and the candidates kept: score and position with as many newcomers, or a GPU's wider buffers.
        kept = 16 * k if set(self._devices) == {"cpu"} else 8 * max(1024, 2 ** math.ceil(math.log2(8 * k)))
        step = max(1, QUERY_BYTES // (4 * self.dim + kept))
        for start in range(0, len(queries), step):
            part = slice(start, min(start + step, len(queries)))
            here = selection.queries(part.start, part.stop)
            with torch.no_grad():
                best, found = self._top_k(_tensor(queries[part]), k, here)
            scores[part], positions[part] = best.cpu().numpy(), found.cpu().numpy()
            if self.mean is not None and not self.normalize:
                # The same for all documents, so added at the end; -inf stays -inf.
                scores[part] += (queries[part] @ self.mean)[:, None]
        return scores, positions

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of `rows`, float32 [len(rows), dim]."""
        found = np.empty((len(rows), self.dim), dtype=np.float32)
        for block, wanted, inside in self._located(rows):
            found[wanted] = self._restored(block.rows[_index(inside, block.rows)]).cpu().numpy()
        return found

    def replace(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Put prepared float32 `vectors` [m, dim] into `rows` (int64 [m], distinct), in place.

        Raises `ConfigError` where the vectors are read-only; nothing has been written then.
        """
        for block, _, _ in self._located(rows):
            self._make_writable(block)
        for block, wanted, inside in self._located(rows):
            stored = vectors[wanted] if self.mean is None else vectors[wanted] - self.mean
            block.rows[_index(inside, block.rows)] = _tensor(stored).to(block.rows.device, block.rows.dtype)

    def remove(self, rows: np.ndarray) -> None:
        """Take `rows` (int64, distinct) out; the rows behind them move up, so that the order stays."""
        touched = [(block, inside) for block, _, inside in self._located(rows)]
        for block, _ in touched:
            if block.lent:
                raise ConfigError("the vectors belong to the caller, so none can be removed; build the index instead")
            self._make_writable(block)
        for block, inside in touched:
            _compact(block.rows, block.count, inside)
            block.count -= len(inside)
        self._blocks = [block for block in self._blocks if block.count]
        first = 0
        for block in self._blocks:
            block.first = first
            first += block.count

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the rows as they are stored; mapped files are linked. Returns the manifest entries that say so."""
        pieces: list[list[Block]] = []
        for block in self._blocks:
            if block.file is not None or not pieces or pieces[-1][-1].file is not None:
                pieces.append([])
            pieces[-1].append(block)
        names = ["vectors.npy"] if len(pieces) < 2 else [f"vectors-{n:05d}.npy" for n in range(len(pieces))]
        for name, piece in zip(names, pieces or [[]], strict=True):
            if piece and piece[0].file is not None:
                piece[0].file.copy_to(directory / name)
            else:
                count = sum(block.count for block in piece)
                kinds = {_storable(block.rows) for block in piece} or {self.dtype}
                dtype = np.dtype(kinds.pop() if len(kinds) == 1 else "float32")
                write_npy(directory / name, dtype, (count, self.dim), _tiles(piece))
        if self.mean is not None:
            np.save(directory / "mean.npy", self.mean)
        return {
            "vectors": names,
            "dtype": self.dtype,
            "centred": self.mean is not None,
            "normalize": self.normalize,
            "on_disk": bool(self._blocks) and all(block.on_disk for block in self._blocks),
        }

    def _top_k(self, queries: Any, k: int, selection: Selection) -> tuple[Any, Any]:
        from ance_fast.ops.topk_inner_product import merge_topk

        lanes: dict[str | int, list[Block]] = {}
        for number, block in enumerate(self._blocks):
            # One thread a device; where a device is named several times, its blocks are dealt out.
            named = [lane for lane, device in enumerate(self._devices) if device == block.device]
            lanes.setdefault(named[number % len(named)] if named else block.device, []).append(block)
        if len(lanes) == 1:
            return self._search_lane(next(iter(lanes.values())), queries, k, selection)
        with ThreadPoolExecutor(max(1, len(lanes))) as pool:
            parts = list(pool.map(lambda blocks: self._search_lane(blocks, queries, k, selection), lanes.values()))
        return merge_topk(parts, k)

    def _search_lane(self, blocks: list[Block], queries: Any, k: int, selection: Selection) -> tuple[Any, Any]:
        """Search `blocks`, all of one device."""
        import torch

        from ance_fast.ops.topk_inner_product import StreamingTopK

        device = blocks[0].device
        rows, stored = queries.to(device), blocks[0].rows.dtype
        if device.startswith("cuda") and stored in (torch.float16, torch.bfloat16):
            rows = rows.to(stored)  # half-precision products are made by tensor cores, and added up in float32
        allow = None if selection.allow is None else torch.from_numpy(selection.allow).to(device)
        exclude = None
        if selection.exclude is not None:
            offsets, excluded = (torch.from_numpy(part).to(device) for part in selection.exclude)
            exclude = (offsets, excluded)
        collector = StreamingTopK(rows, k, allow=allow, exclude=exclude)
        for block in blocks:
            tiled = self.normalize or block.on_disk or block.rows.device.type not in device
            step = TILE_ROWS if tiled else max(block.count, 1)
            for start in range(0, block.count, step):
                stop = min(start + step, block.count)
                tile = block.rows[start:stop].to(device)
                collector.add(self._restored(tile) if self.normalize else tile, block.first + start)
                if block.on_disk and block.file is not None:
                    block.file.forget(start, stop)
        best, found = collector.result()
        return best, found

    def _restored(self, rows: Any) -> Any:
        """Stored rows (a tensor) as float32 vectors: the mean put back, normalised if they are to be."""
        import torch

        rows = rows.float()
        if self.mean is not None:
            rows = rows + torch.from_numpy(self.mean).to(rows.device)
        if self.normalize:
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
            rows = (rows / torch.where(norms == 0, 1.0, norms)).float()
        return rows

    def _located(self, rows: np.ndarray) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """For each block that holds some of `rows`: the block, which of `rows` they are, and their places in it."""
        holder = np.searchsorted([block.first for block in self._blocks], rows, side="right") - 1
        for number in np.unique(holder):
            wanted = np.flatnonzero(holder == number)
            yield self._blocks[number], wanted, rows[wanted] - self._blocks[number].first

    def _make_writable(self, block: Block) -> None:
        if block.on_disk:
            raise ConfigError("the vectors stay on disk and are read-only; load or build the index in memory to change")
        if block.read_only:
            if block.lent:
                raise ConfigError("the vectors are an array of the caller that is read-only; build the index instead")
            memory = self._empty(block.count, block.device, str(block.rows.dtype).removeprefix("torch."))
            memory[:] = block.rows
            block.rows, block.file, block.read_only = memory, None, False

    def _room(self, wanted: int) -> Block:
        """The last block if it has room, else a new one."""
        last = self._blocks[-1] if self._blocks else None
        if last is not None and not last.lent and not last.read_only and last.count < len(last.rows):
            return last
        if self._reserved:
            block = self._reserved.pop(0)
        else:
            capacity = max(wanted, len(self) // GROWTH, MIN_BLOCK_ROWS)
            device = self._emptiest()
            block = Block(0, 0, self._empty(capacity, device), device)
        block.first = len(self)
        self._blocks.append(block)
        return block

    def _empty(self, rows: int, device: str, dtype: str | None = None) -> Any:
        import torch

        kind = dtype or self.dtype
        if device == "cpu":
            return torch.from_numpy(np.empty((rows, self.dim), dtype=kind))  # NumPy asks for huge pages, torch does not
        return torch.empty((rows, self.dim), dtype=getattr(torch, kind), device=device)

    def _emptiest(self) -> str:
        held = dict.fromkeys(self._devices, 0)
        for block in self._blocks:
            held[block.device] = held.get(block.device, 0) + block.count
        return min(self._devices, key=lambda device: held[device])


def _tensor(rows: Any) -> Any:
    """`rows` as a tensor that shares its memory; nobody here writes through one of a read-only array."""
    import torch

    if not isinstance(rows, np.ndarray):
        return rows
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(rows if rows.flags.c_contiguous else np.ascontiguousarray(rows))


def _index(rows: np.ndarray, tensor: Any) -> Any:
    import torch

    return torch.from_numpy(rows).to(tensor.device)


def _compact(rows: Any, count: int, removed: np.ndarray) -> None:
    """Move the rows of a tensor up over the `removed` ones, a tile at a time."""
    kept = np.delete(np.arange(count), removed)
    start = int(removed.min())  # what is before stays in place
    for at in range(start, len(kept), TILE_ROWS):
        piece = kept[at : at + TILE_ROWS]
        rows[at : at + len(piece)] = rows[_index(piece, rows)]


def _storable(rows: Any) -> str:
    """The NumPy dtype rows are written as: NumPy has no bfloat16."""
    name = str(rows.dtype).removeprefix("torch.")
    return name if name == "float16" else "float32"


def _tiles(blocks: list[Block]) -> Iterator[np.ndarray]:
    for block in blocks:
        for start in range(0, block.count, TILE_ROWS):
            tile = block.rows[start : min(start + TILE_ROWS, block.count)].cpu()
            yield tile.numpy() if _storable(tile) == "float16" else tile.float().numpy()
