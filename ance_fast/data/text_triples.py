"""Text triples (`triples.train.small.tsv`) as token stores: what a warm-up trains on, in the file's order.

The file is read once. Each distinct text is tokenised once: passages into one store, queries into another, and a triple
is three row numbers. Held meanwhile: a hash and a number for each distinct text (about 150 bytes), the queries' texts,
and 12 bytes a triple.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.artifacts import MANIFEST, open_artifact, staged_artifact
from ance_fast.data.msmarco import read_text_triples
from ance_fast.data.records import Document
from ance_fast.data.text_lines import read_columns
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ArtifactError, DataError

logger = logging.getLogger(__name__)

KIND = "text_triples"


@dataclass(frozen=True)
class TextTriples:
    """Distinct queries and passages, numbered as they come first in the file, and the triples.

    rows: int32 [T, 3] query, positive and negative row, in the file's order; mapped, not read.
    """

    queries: TokenStore
    passages: TokenStore
    rows: np.ndarray


def distinct_passages(path: str | Path) -> Iterator[tuple[int, Document]]:
    """(line, document) of each distinct passage of the file, its id the number of those before it."""
    seen: set[bytes] = set()
    for line, (_, positive, negative) in read_columns(path, 3):
        for text in (positive, negative):
            if (key := _hash(text)) not in seen:
                yield line, Document(str(len(seen)), text)
                seen.add(key)


def build_text_triples(
    path: str | Path,
    tokenizer: Any,
    folder: str | Path,
    *,
    max_query_length: int,
    max_document_length: int,
    query_prompt: str = "",
    document_prompt: str = "",
    query_tokenizer: Any = None,
    num_proc: int = 1,
    show_progress: bool = False,
    replace: bool = True,
) -> TextTriples:
    """Make the stores of the triples file `path` in `folder` (`passages`, `train_queries`, `triples`), or open them.

    What is there is opened without reading the file, if it was made from this file (path, size and time of its last
    change) by the same tokenizer, lengths and prompts. Without `replace` anything else that is there is refused.
    query_tokenizer: for queries; None: `tokenizer` is for both.

    Raises `DataError` with file and line for lines that are no triple, and for a file without any; `ArtifactError` as
    `TokenStore.build`.
    """
    folder = Path(folder)
    settings = {
        "passages": {"tokenizer": tokenizer, "max_length": max_document_length, "prompt": document_prompt},
        "train_queries": {
            "tokenizer": tokenizer if query_tokenizer is None else query_tokenizer,
            "max_length": max_query_length,
            "prompt": query_prompt,
        },
    }
    source = _source(Path(path))
    try:
        made = _open(folder, settings, source)
    except ArtifactError:
        if not replace:
            raise
        made = None
    if made is not None:
        logger.info("%s: already holds these triples, tokenised by these settings", folder)
        return made
    if not replace and (folder / "triples" / MANIFEST).exists():
        raise ArtifactError(f"{folder}: holds the triples of another file, which are in use; choose another folder")
    stream = _Stream(Path(path))
    options: dict[str, Any] = {
        "num_proc": num_proc,
        "replace": replace,
        "keep_text": False,
        "show_progress": show_progress,
    }
    passages = TokenStore.build(stream.passages(), path=folder / "passages", **settings["passages"], **options)
    queries = TokenStore.build(stream.queries, path=folder / "train_queries", **settings["train_queries"], **options)
    stores = {"passages": passages.manifest["content"], "train_queries": queries.manifest["content"]}
    with staged_artifact(folder / "triples", KIND, {"source": source, "stores": stores}) as staging:
        np.save(staging / "rows.npy", np.frombuffer(stream.rows, dtype=np.int32).reshape(-1, 3))
    return TextTriples(queries, passages, _rows(folder))


class _Stream:
    """One pass over the file: passages as they come first; queries and rows are gathered on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.queries: list[str] = []
        self.rows = array("i")

    def passages(self) -> Iterator[str]:
        known: dict[bytes, int] = {}
        asked: dict[bytes, int] = {}
        for query, positive, negative in read_text_triples(self._path):
            row = asked.setdefault(_hash(query), len(asked))
            if row == len(self.queries):
                self.queries.append(query)
            self.rows.append(row)
            for text in (positive, negative):
                before = len(known)
                number = known.setdefault(_hash(text), before)
                self.rows.append(number)
                if number == before:
                    yield text
        if not known:
            raise DataError(f"{self._path}: no triples; each line is `query <tab> positive <tab> negative`")


def _open(folder: Path, settings: dict[str, dict[str, Any]], source: dict[str, Any]) -> TextTriples | None:
    """What is there, if it was made from `source`; None where there is nothing whole, or of another file."""
    if not (folder / "triples" / MANIFEST).exists():
        return None
    manifest = open_artifact(folder / "triples", KIND)
    stores = {name: TokenStore.open(folder / name, **given, verify=False) for name, given in settings.items()}
    contents = {name: store.manifest["content"] for name, store in stores.items()}
    if manifest["source"] != source or manifest["stores"] != contents:
        return None
    return TextTriples(stores["train_queries"], stores["passages"], _rows(folder))


def _rows(folder: Path) -> np.ndarray:
    rows: np.ndarray = np.load(folder / "triples" / "rows.npy", mmap_mode="r")
    return rows


def _source(path: Path) -> dict[str, Any]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return {"path": os.path.abspath(path), "bytes": found.st_size, "modified": found.st_mtime_ns}


def _hash(text: str) -> bytes:
    # 16 bytes: of ten million texts two share them with a probability below 1e-24.
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
