"""Which passages are chunks of one document: by a file that says so, or by what their ids have in common."""

from __future__ import annotations

import numpy as np

from ance_fast.data.chunked_documents import StoreDocuments, groups_by_id
from ance_fast.data.text_lines import read_columns
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import DataError


def documents_by_file(path: str, passages: TokenStore | StoreDocuments) -> np.ndarray:
    """A number for each passage, int64 [passages], equal where a file of lines `passage <tab> document` says so.

    A passage that the file lacks is a document by itself. Raises `DataError` with file and line for a line of another
    form, a passage with two documents, and a file that names no passage of the corpus.
    """
    numbers: dict[str, int] = {}
    document_of: dict[str, int] = {}
    first = 0
    for line, (passage, document) in read_columns(path, 2):
        first = first or line
        number = numbers.setdefault(document, len(numbers))
        if document_of.setdefault(passage, number) != number:
            raise DataError(f"{path}:{line}: passage {passage!r} is of another document in a line before")
    rows = passages.positions(list(document_of))
    if not (rows >= 0).any():
        what = f"passage {next(iter(document_of))!r} and all others are not in the corpus" if first else "no lines"
        raise DataError(f"{path}:{first or 1}: {what}; expected `passage <tab> document`")
    found = len(numbers) + np.arange(len(passages))
    found[rows[rows >= 0]] = np.fromiter(document_of.values(), dtype=np.int64, count=len(rows))[rows >= 0]
    return found


def documents_by_id(separator: str, passages: TokenStore | StoreDocuments) -> np.ndarray:
    """A number for each passage, int64 [passages], equal where ids are up to the last `separator`: "doc7#0", "doc7#1".

    An id without it is a document's own. Raises `ConfigError` if no id holds it.
    """
    return groups_by_id(passages.ids.arrow, separator).numbers
