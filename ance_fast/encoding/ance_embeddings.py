"""Embeddings as microsoft/ANCE's inferencer leaves them, one pair of files for each of its processes, and back.

    passage_10000__emb_p__data_obj_0.npy      float32 [n, dim], of rank 0
    passage_10000__embid_p__data_obj_0.npy    int64 [n], the number of each row's record in the cache

`passage`, `query` or `dev_query`, the step of the checkpoint, the rank; `.pb`, a pickle, until 2026. Records are dealt
out to the ranks in turn. A document that was cut into chunks has a row for each, its first chunk before its second.
Source: github.com/microsoft/ANCE (Xiong et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ance_fast.artifacts import atomic_file, staged_artifact
from ance_fast.data.ance_cache import read_ance_cache
from ance_fast.data.chunks import SEPARATOR
from ance_fast.data.plain_pickle import read_array_pickle, write_array_pickle
from ance_fast.encoding.shards import IDS, KIND, EmbeddingShards, write_ids
from ance_fast.errors import ArtifactError, ConfigError, DataError

PARTS = {"passage": None, "query": "train", "dev_query": "dev"}
"""The parts of a round, and the split of the cache whose queries they are."""

_FILE = "{part}_{step}__{kind}_p__data_obj_{rank}"
_BLOCK = 8192


@dataclass(frozen=True)
class RankFiles:
    """What one process wrote."""

    rank: int
    vectors: Path
    records: Path

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(float [n, dim], mapped if it is `.npy`; record numbers int64 [n]). Raises `DataError` naming the file."""
        vectors, records = _array(self.vectors), _array(self.records)
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise DataError(f"{self.vectors}: {vectors.dtype} {list(vectors.shape)}, expected floats [n, dim]")
        if records.shape != vectors.shape[:1] or records.dtype.kind != "i":
            raise DataError(
                f"{self.records}: {records.dtype} {list(records.shape)}, expected integers [{len(vectors)}]"
            )
        return vectors, records.astype(np.int64)


def find_ance_embeddings(folder: str | Path, part: str = "passage", step: int | None = None) -> list[RankFiles]:
    """The files of one part and step (None: the highest there), by rank.

    Raises `ArtifactError`: none, a file without its other half, a rank that is missing between others; `ConfigError`.
    """
    if part not in PARTS:
        raise ConfigError(f"part {part!r}: choose {', '.join(PARTS)}")
    folder = Path(folder)
    found: dict[int, dict[int, dict[str, Path]]] = {}
    for file, of_step, kind, rank in _files_of(folder, part):
        # Of both formats the later one counts: it sorts first.
        found.setdefault(of_step, {}).setdefault(rank, {}).setdefault(kind, file)
    if not found or (step is not None and step not in found):
        steps = f"; steps there: {', '.join(map(str, sorted(found)))}" if found else ""
        which = f"of step {step} " if step is not None else ""
        raise ArtifactError(f"{folder}: no {part} embeddings {which}(STEP__emb_p__data_obj_RANK){steps}")
    step = max(found) if step is None else step
    ranks = found[step]
    files = []
    for rank in range(max(ranks) + 1):
        for kind in ("emb", "embid"):
            if kind not in ranks.get(rank, {}):
                name = _FILE.format(part=part, step=step, kind=kind, rank=rank)
                raise ArtifactError(f"{folder / name}: missing (.npy or .pb), so the embeddings are not whole")
        files.append(RankFiles(rank, ranks[rank]["emb"], ranks[rank]["embid"]))
    return files


def read_ance_embeddings(
    folder: str | Path, part: str = "passage", step: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(vectors float32 [n, dim], record of each, int64 [n]) of all ranks, in the order of records, all in memory.

    Raises as `find_ance_embeddings`, and `DataError` for arrays of other shapes and records that are missing.
    """
    layout = _Layout(find_ance_embeddings(folder, part, step))
    vectors = np.empty((layout.rows, layout.dim), dtype=np.float32)
    layout.copy(vectors)
    return vectors, np.repeat(np.arange(layout.rows // layout.chunks), layout.chunks)


def import_ance_embeddings(
    folder: str | Path,
    path: str | Path,
    *,
    fingerprint: str,
    part: str = "passage",
    step: int | None = None,
    cache: str | Path | None = None,
    prefix: str = "",
) -> EmbeddingShards:
    """Make the embeddings folder `path` of them, float32, in the order of the cache's records.

    fingerprint: `Encoder.fingerprint()` of the checkpoint that made them, which an index of them will ask queries for.
    cache: the folder of preprocessed data, which knows the ids; without it, ids are the numbers of the records. prefix:
    before each passage id. Chunks of document D are `D#0`, `D#1`.

    Raises as `read_ance_embeddings`; `DataError` too where the cache has another number of records, `ArtifactError`
    where `path` holds something else.
    """
    layout = _Layout(find_ance_embeddings(folder, part, step))
    ids = _ids(layout, part, cache, prefix)
    settings = {"source": "microsoft/ANCE", "fingerprint": fingerprint}
    manifest = {
        "settings": settings if layout.chunks == 1 else {**settings, "chunks": {"count": layout.chunks}},
        "fingerprint": fingerprint,
        "dim": layout.dim,
        "dtype": "float32",
        "centred": False,
        "rows": layout.rows,
        "budget": None,
        "shards": [{"file": "embeddings-00000.npy", "start": 0, "rows": layout.rows, "content": ""}],
    }
    with staged_artifact(path, KIND, manifest) as staging:
        write_ids(staging / IDS, pa.chunked_array([ids], pa.large_string()))
        target = np.lib.format.open_memmap(
            staging / "embeddings-00000.npy", mode="w+", dtype=np.float32, shape=(layout.rows, layout.dim)
        )
        layout.copy(target)
        target.flush()
    return EmbeddingShards.open(path, verify=False)


def write_ance_embeddings(
    shards: EmbeddingShards,
    folder: str | Path,
    *,
    part: str = "passage",
    step: int = 0,
    ranks: int = 1,
    form: str = "npy",
    cache: str | Path | None = None,
    prefix: str = "",
) -> None:
    """Write embeddings as `ranks` processes of microsoft/ANCE would have: each file atomically, record i to rank
    i mod `ranks`.

    cache: the folder of preprocessed data whose records these are, found by their ids (`prefix` before those of
    passages, as in `import_ance_embeddings`). Without it a row's record is its place here, or with chunks its
    document's. form: "npy" or "pb".

    Raises `ConfigError`; `DataError` where the cache lacks an id or has more records; `ArtifactError` for other files
    of this part and step in the folder, which readers would mix with these.
    """
    if part not in PARTS or form not in ("npy", "pb") or ranks < 1 or step < 0:
        raise ConfigError(f"part={part!r}, form={form!r}, ranks={ranks}, step={step}: no such embeddings")
    records = _records_of(shards, part, cache, prefix)
    folder = Path(folder)

    def target(kind: str, rank: int) -> Path:
        return folder / f"{_FILE.format(part=part, step=step, kind=kind, rank=rank)}.{form}"

    written = {target(kind, rank) for kind in ("emb", "embid") for rank in range(ranks)}
    for file, of_step, _, _ in _files_of(folder, part):
        if of_step == step and file not in written:
            raise ArtifactError(
                f"{file}: other {part} embeddings of step {step} are there, which would be read with or instead of "
                "these; remove them, or write to another folder or --step"
            )
    for rank in range(ranks):
        rows = np.flatnonzero(records % ranks == rank)
        rows = rows[np.argsort(records[rows], kind="stable")]
        with atomic_file(target("emb", rank)) as staging:
            blocks = (
                shards.read(rows[start : start + _BLOCK]).astype(np.float32) for start in range(0, len(rows), _BLOCK)
            )
            _write_array(staging, form, np.dtype(np.float32), (len(rows), shards.dim), blocks)
        with atomic_file(target("embid", rank)) as staging:
            _write_array(staging, form, np.dtype(np.int64), (len(rows),), iter([records[rows]]))


class _Layout:
    """Where each rank's rows go: sorted by record, a document's chunks one after the other.

    Raises `DataError` unless every record from 0 on has the same number of rows.
    """

    def __init__(self, files: Sequence[RankFiles]) -> None:
        self._files = files
        read = [one.read() for one in files]
        self.dim = int(read[0][0].shape[1])
        records = [found for _, found in read]
        for one, (vectors, _) in zip(files, read, strict=True):
            if vectors.shape[1] != self.dim:
                raise DataError(f"{one.vectors}: {vectors.shape[1]} dimensions, {files[0].vectors} has {self.dim}")
        every = np.concatenate(records)
        self.rows = len(every)
        if not self.rows:
            raise DataError(f"{files[0].vectors}: no rows")
        if every.min() < 0:
            raise DataError(f"{files[0].records}: record {every.min()}; records count from 0")
        if every.max() >= self.rows:  # counting how often each comes would take memory for all below the highest
            missing = int(np.setdiff1d(np.arange(self.rows), every)[0])
            raise self._not_whole(missing, int((every == missing).sum()), int(every.max()) + 1)
        times = np.bincount(every)
        self.chunks = int(np.bincount(times).argmax())
        wrong = np.flatnonzero(times != self.chunks)
        if self.chunks == 0 or len(wrong):
            raise self._not_whole(int(wrong[0]), int(times[wrong[0]]), len(times))
        order = np.argsort(every, kind="stable")
        places = np.empty(self.rows, dtype=np.int64)
        places[order] = np.arange(self.rows)
        ends = np.cumsum([len(found) for found in records])
        self._places = np.split(places, ends[:-1])

    def copy(self, target: np.ndarray) -> None:
        """Fill `target` float32 [rows, dim]. Raises `DataError` for NaN and infinity."""
        for one, places in zip(self._files, self._places, strict=True):
            vectors, _ = one.read()
            for start in range(0, len(places), _BLOCK):
                block = vectors[start : start + _BLOCK]
                finite = np.isfinite(block).all(axis=1)
                if not finite.all():
                    raise DataError(f"{one.vectors}: row {start + int(finite.argmin())} holds NaN or infinity")
                target[places[start : start + _BLOCK]] = block

    def _not_whole(self, record: int, times: int, count: int) -> DataError:
        files = len(self._files)
        where = self._files[0].vectors
        return DataError(
            f"{where}: of {count} records, record {record} has {times} rows in {files} files and others have more or "
            "less: a rank's file is missing, or files of different rounds are mixed"
        )


def _files_of(folder: Path, part: str) -> Iterator[tuple[Path, int, str, int]]:
    """(file, step, "emb" or "embid", rank) of every file of a part, by name."""
    pattern = re.compile(rf"{part}_(\d+)__(emb|embid)_p__data_obj_(\d+)\.(npy|pb)", re.ASCII)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(file.name)
        if match:
            yield file, int(match[1]), match[2], int(match[3])


def _write_array(path: Path, form: str, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterator[np.ndarray]) -> None:
    if form == "pb":
        write_array_pickle(path, dtype, shape, blocks)
        return
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)


def _array(path: Path) -> np.ndarray:
    if path.suffix == ".pb":
        return read_array_pickle(path)
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not readable as .npy ({error})") from error
    return found


def _ids(layout: _Layout, part: str, cache: str | Path | None, prefix: str) -> pa.Array:
    count = layout.rows // layout.chunks
    if cache is None:
        names = pc.cast(pa.array(np.arange(count)), pa.large_string())
        if prefix and part == "passage":
            texts = pa.scalar(prefix, pa.large_string()), names, pa.scalar("", pa.large_string())
            names = pc.binary_join_element_wise(*texts)
    else:
        path, names = _cache_ids(cache, part, prefix)
        if len(names) != count:
            raise DataError(f"{path}: {len(names)} records, but embeddings of {count}")
    if layout.chunks == 1:
        return names
    owners = names.take(pa.array(np.repeat(np.arange(count), layout.chunks)))
    numbers = pc.cast(pa.array(np.tile(np.arange(layout.chunks), count)), pa.large_string())
    return pc.binary_join_element_wise(owners, numbers, pa.scalar(SEPARATOR, pa.large_string()))


def _cache_ids(cache: str | Path, part: str, prefix: str) -> tuple[Path, pa.Array]:
    """(file, large_string) ids of the records that a part's embeddings are of, in their order."""
    data = read_ance_cache(cache, PARTS[part], prefix=prefix)
    tokens = data.query_tokens or data.corpus
    return tokens.path, tokens.ids.arrow.combine_chunks()  # type: ignore[attr-defined]


def _records_of(shards: EmbeddingShards, part: str, cache: str | Path | None, prefix: str) -> np.ndarray:
    """The record of each row, int64."""
    if cache is None and prefix:
        raise ConfigError(f"prefix={prefix!r}: ids are looked for in a cache; name it (--cache)")
    documents = shards.ids.arrow
    if shards.manifest.get("settings", {}).get("chunks"):
        documents = pc.list_element(pc.split_pattern(documents, SEPARATOR, max_splits=1, reverse=True), 0)
    elif cache is None:
        return np.arange(len(shards))
    if cache is None:
        found: np.ndarray = pc.index_in(documents, value_set=pc.unique(documents)).to_numpy()
        return found.astype(np.int64)
    path, names = _cache_ids(cache, part, prefix)
    places = pc.index_in(documents, value_set=names)
    if places.null_count:
        lacking = documents.filter(pc.is_null(places))[0].as_py()
        raise DataError(
            f"{path}: no record of {lacking!r} ({places.null_count} such embeddings): another cache, or ids that need "
            "--prefix"
        )
    records: np.ndarray = places.to_numpy().astype(np.int64)
    without = np.flatnonzero(np.bincount(records, minlength=len(names)) == 0)
    if len(without):
        first = names[int(without[0])].as_py()
        raise DataError(f"{path}: {len(without)} records have no embedding, the first is {first!r}")
    return records
