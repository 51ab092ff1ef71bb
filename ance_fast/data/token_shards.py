"""One shard of a token store: an Arrow IPC file with one record batch, and the record of what it was made from.

Columns: `id: large_string`, `tokens: list<uint16|int32>` and, when texts are kept, `title` and `text: large_string`;
where documents were cut `chunk: uint16`, a row's number in its document, whose texts are in its first row;
uncompressed and without nulls, so that a mapped file is used as it lies. The schema's metadata holds `ShardInfo` as
JSON, which lets an interrupted build tell which shards it may keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ance_fast.artifacts import atomic_file
from ance_fast.data.chunks import SEPARATOR, ChunkRules
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ArtifactError, ConfigError

_METADATA = b"ance_fast.token_shard"
_MAX_OFFSET = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Recipe:
    """What decides the tokens of a text. `tokenizer` is a fingerprint."""

    tokenizer: str
    max_length: int
    prompt: str
    dtype: str
    keep_text: bool
    chunks: ChunkRules | None = None

    def schema(self) -> pa.Schema:
        """The columns of a shard."""
        columns = [("id", pa.large_string()), ("tokens", pa.list_(pa.type_for_alias(self.dtype)))]
        if self.chunks is not None:
            columns.append(("chunk", pa.uint16()))
        if self.keep_text:
            columns += [("title", pa.large_string()), ("text", pa.large_string())]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain values; `chunks` only where there are some, as stores without them always were."""
        return {name: value for name, value in asdict(self).items() if name != "chunks" or value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """What `as_json` gave, among other values. Raises `KeyError` and `TypeError`."""
        given = {part.name: values[part.name] for part in fields(cls) if part.name != "chunks"}
        return cls(**given, chunks=ChunkRules.from_json(values.get("chunks")))


@dataclass(frozen=True)
class ShardInfo:
    """What a shard holds: `content` hashes the documents that went in, `payload` the columns that came out."""

    recipe: Recipe
    content: str
    payload: str
    rows: int
    tokens: int
    truncated: int


def shard_name(number: int) -> str:
    """File name of the shard `number`."""
    return f"tokens-{number:05d}.arrow"


def make_batch(
    documents: pa.RecordBatch, tokens: Tokens, recipe: Recipe, counts: np.ndarray | None = None
) -> pa.RecordBatch:
    """Documents (`document_batches.SCHEMA`) and their tokens as a record batch of `recipe.schema()`.

    counts: int64 [documents], how many of the token lists, its chunks, are each document's; None: one.

    Raises `ConfigError` past 2^31 - 1 tokens, which 32-bit list offsets cannot address.
    """
    if tokens.offsets[-1] > _MAX_OFFSET:
        raise ConfigError(f"a shard of {documents.num_rows} documents holds more than 2^31 tokens; lower shard_rows")
    schema = recipe.schema()
    lists = pa.ListArray.from_arrays(
        pa.array(tokens.offsets.astype(np.int32)), pa.array(tokens.values), type=schema.field("tokens").type
    )
    named = documents if counts is None else _chunk_rows(documents, counts)
    columns = [lists if name == "tokens" else named.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def documents_of(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The documents of a shard's batch: the batch itself, or of chunks each document's first, under the document's
    id."""
    if "chunk" not in batch.schema.names:
        return batch
    first = batch.filter(pc.equal(batch.column("chunk"), 0))
    ids = pc.utf8_slice_codeunits(first.column("id"), 0, -len(f"{SEPARATOR}0"))
    return first.set_column(first.schema.get_field_index("id"), first.schema.field("id"), ids)


def _chunk_rows(documents: pa.RecordBatch, counts: np.ndarray) -> pa.RecordBatch:
    owner = np.repeat(np.arange(len(counts)), counts)
    numbers = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    chunk = pa.array(numbers.astype(np.uint16))
    name = documents.column("id").take(pa.array(owner))
    ids = pc.binary_join_element_wise(name, pc.cast(chunk, pa.large_string()), pa.scalar(SEPARATOR, pa.large_string()))
    # Texts are not repeated: after the last document comes an empty one, which later chunks take theirs from.
    place = pa.array(np.where(numbers == 0, owner, len(counts)))
    columns = {"id": ids, "chunk": chunk}
    for part in ("title", "text"):
        padded = pa.chunked_array([documents.column(part), pa.array([""], pa.large_string())])
        columns[part] = padded.take(place).combine_chunks()
    return pa.RecordBatch.from_pydict(columns)


def write_shard(
    path: Path,
    documents: pa.RecordBatch,
    tokens: Tokens,
    recipe: Recipe,
    content: str,
    counts: np.ndarray | None = None,
) -> ShardInfo:
    """Write one shard whole (temporary name, fsync, rename). Raises `OSError` naming `path`, e.g. on a full disk."""
    batch = make_batch(documents, tokens, recipe, counts)
    info = ShardInfo(recipe, content, _payload(batch), batch.num_rows, len(tokens.values), tokens.truncated)
    schema = batch.schema.with_metadata({_METADATA: json.dumps({**asdict(info), "recipe": recipe.as_json()})})
    try:
        with (
            atomic_file(path) as staging,
            pa.OSFile(str(staging), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    except OSError as error:
        raise OSError(error.errno, f"could not write the token shard: {error.strerror or error}", str(path)) from error
    return info


def read_shard(path: Path, recipe: Recipe) -> pa.RecordBatch:
    """Map one shard. Raises `ArtifactError` if it is not a shard of this recipe or its structure is damaged."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1 or not reader.schema.equals(recipe.schema()):
            raise ArtifactError(f"{path}: not a token shard of this store; build the store again")
        batch = reader.get_batch(0)
        batch.validate()
        offsets, values = token_arrays(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable as an Arrow file ({error}); build the store again") from error
    # Compiled code walks these offsets without looking back, so they are checked here, once.
    if offsets[0] != 0 or offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
        raise ArtifactError(f"{path}: token offsets are damaged; build the store again")
    if any(column.null_count for column in (*batch.columns, batch.column("tokens").values)):
        raise ArtifactError(f"{path}: holds nulls, which no token shard does; build the store again")
    return batch


def token_arrays(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int32 [rows + 1], values [tokens]) of a batch: views, nothing is copied."""
    column = batch.column("tokens")
    return column.offsets.to_numpy(zero_copy_only=True), column.values.to_numpy(zero_copy_only=True)


def matching_shard(path: Path, recipe: Recipe, content: str) -> ShardInfo | None:
    """The record of the shard at `path` if it is intact and was made from this content by this recipe, else None."""
    if not path.is_file():
        return None
    try:
        batch = read_shard(path, recipe)
        info: dict[str, Any] = json.loads(batch.schema.metadata[_METADATA])
        found = ShardInfo(**{**info, "recipe": Recipe.from_json(info["recipe"])})
        intact = found.recipe == recipe and found.content == content and found.payload == _payload(batch)
    except (ArtifactError, KeyError, TypeError, ValueError):
        return None
    return found if intact else None


def adopt_shard(source: Path, target: Path) -> None:
    """Make the shard `source` appear at `target`, without copying where the file system can."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic_file(target) as staging:
            shutil.copyfile(source, staging)


def _payload(batch: pa.RecordBatch) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in batch.columns:
        for part in _logical_buffers(column):
            digest.update(part.data)
    return digest.hexdigest()


def _logical_buffers(column: pa.Array) -> Iterator[np.ndarray]:
    """Offsets and values of a column without the padding, which differs between memory and file."""
    if pa.types.is_list(column.type):
        yield column.offsets.to_numpy()
        yield column.values.to_numpy()
    elif pa.types.is_integer(column.type):
        yield column.to_numpy()
    else:
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[: len(column) + 1]
        yield ends
        if data is not None:
            yield np.frombuffer(data, dtype=np.uint8)[: int(ends[-1])]
