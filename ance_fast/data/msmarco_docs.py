"""MS MARCO document folders, as microsoft/ANCE reads them: url, title and body make up one text.

    msmarco-docs.tsv                      D1 <tab> url <tab> title <tab> body
    msmarco-doctrain-queries.tsv, ...     1 <tab> text
    msmarco-doctrain-qrels.tsv, ...       1 0 D1 1

Each plain, `.gz` or `.zst`. A document's text is url, separator, title, separator, body, each part without white space
at its end, cut at a number of characters before it is tokenised; a fifth column is left out, counted in a warning.
Source: github.com/microsoft/ANCE (Xiong et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ance_fast.data.dataset import Corpus, Dataset, collect_queries
from ance_fast.data.input_files import find_file, has_file
from ance_fast.data.msmarco import read_query_lines, without_more
from ance_fast.data.qrels import Qrels, read_qrels
from ance_fast.data.records import Document
from ance_fast.data.text_lines import read_columns
from ance_fast.errors import ConfigError, DataError

CORPUS = "msmarco-docs.tsv"
SPACED = ("</s>", "[SEP]")
"""Separators that stand between blanks: microsoft/ANCE puts them around its tokenizer's own."""


class _Split(NamedTuple):
    queries: str
    qrels: str | None  # None: those whose labels only the leaderboard has


SPLITS = {
    "train": _Split("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
    "dev": _Split("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
    "test2019": _Split("msmarco-test2019-queries.tsv", "2019qrels-docs.txt"),
    "test2020": _Split("msmarco-test2020-queries.tsv", "2020qrels-docs.txt"),
    "eval": _Split("docleaderboard-queries.tsv", None),
}


def read_msmarco_docs(
    path: str | Path, split: str | None = "dev", *, separator: str = "</s>", max_characters: int = 10_000
) -> Dataset:
    """Read an MS MARCO document folder. The corpus streams; queries and judgements of `split` are held.

    split: train, dev, test2019, test2020 or eval (queries alone); None: the corpus alone. separator: `</s>` as
    microsoft/ANCE has it, or `[SEP]` for SEED-Encoder, both with a blank on either side; any other is put in as it is,
    such as `<sep>`, which microsoft/ANCE first had. max_characters: what a text is cut at; 0
    cuts nothing. Raises `DataError`: a missing file, a split that is not known, malformed lines; `ConfigError`.
    """
    if max_characters < 0:
        raise ConfigError(f"max_characters must be at least 0, not {max_characters}")
    folder = Path(path)

    def documents(file: Path) -> Iterator[tuple[int, Document]]:
        return document_lines(file, separator, max_characters)

    corpus = Corpus(find_file(folder, CORPUS), documents, folder.name)
    if split is None:
        return Dataset(folder.name, corpus, {}, Qrels())
    if split not in SPLITS:
        raise DataError(f"{folder}: no split {split!r}; available: {', '.join(_present(folder)) or 'none'}")
    names = SPLITS[split]
    file = find_file(folder, names.queries)
    qrels = Qrels() if names.qrels is None else read_qrels(find_file(folder, names.qrels))
    queries = collect_queries(file, read_query_lines(file), None if names.qrels is None else qrels)
    return Dataset(folder.name, corpus, queries, qrels, split)


def document_lines(path: Path, separator: str, max_characters: int) -> Iterator[tuple[int, Document]]:
    """(Line number, document) of `msmarco-docs.tsv`. Raises `DataError` with file and line."""
    between = f" {separator} " if separator in SPACED else separator
    for line, fields in without_more(read_columns(path, 4), path):
        identifier, *parts = fields
        if not identifier:
            raise DataError(f"{path}:{line}: empty id")
        text = between.join(part.rstrip() for part in parts)
        yield line, Document(identifier, text[:max_characters] if max_characters else text)


def _present(folder: Path) -> list[str]:
    return [
        name
        for name, split in SPLITS.items()
        if has_file(folder, split.queries) and (split.qrels is None or has_file(folder, split.qrels))
    ]
