"""Corpora and queries of which there are tokens but no texts: what others tokenised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from ance_fast.data.dataset import Corpus
from ance_fast.data.id_column import IdColumn
from ance_fast.data.record_file import RecordFile
from ance_fast.data.records import Document
from ance_fast.errors import DataError


class TokenCorpus(Corpus):
    """Token ids and the ids of their texts; `TokenStore.build` takes it without tokenising anything.

    ids: makes the column of ids (large_string, unique) when it is needed. Iterating over texts raises `DataError`.
    """

    def __init__(self, records: RecordFile, ids: Callable[[], pa.Array], name: str = "") -> None:
        super().__init__(records.path, self._no_texts, name)
        self.records = records
        self._make_ids = ids
        self._length = len(records)

    @cached_property
    def ids(self) -> IdColumn:
        """The ids, in the order of the records. Raises `DataError` as their file's reader does."""
        return IdColumn(pa.chunked_array([self._make_ids()], pa.large_string()))

    def __iter__(self) -> Iterator[Document]:
        return self._no_texts(self.path)

    def _no_texts(self, path: Path) -> NoReturn:
        raise no_texts(path)


class TokenQueries(Mapping[str, str]):
    """The ids of queries in order; asking for a text raises `DataError`."""

    def __init__(self, corpus: TokenCorpus) -> None:
        self.corpus = corpus

    @cached_property
    def _known(self) -> dict[str, int]:
        return {identifier: row for row, identifier in enumerate(self.corpus.ids)}

    def __len__(self) -> int:
        return len(self.corpus)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> str:
        if key not in self._known:
            raise KeyError(key)
        raise no_texts(self.corpus.path)


def no_texts(path: Path) -> DataError:
    """The error of who needs the texts behind the tokens of `path`."""
    return DataError(f"{path}: holds tokens and no texts; what needs texts (BM25, texts shown) needs the original data")
