"""What every measure looks at: a run's documents in one order, documents in place of their chunks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ance_fast.data.trec import Run, best_first, read_run
from ance_fast.errors import ConfigError, DataError

RunSource = Mapping[str, Mapping[str, float]] | str | os.PathLike[str]
"""Query id -> {document id: score}, higher is better, or the path of a run file."""


def ranking(query: str, scores: Mapping[str, float]) -> list[str]:
    """Documents, best first; of equal scores the higher document id first, as trec_eval does.

    Scores are equal when their float32 are, in which trec_eval holds them. Raises `DataError` for one that is NaN.
    """
    for document, score in scores.items():
        if math.isnan(score):
            raise DataError(f"query {query!r}, document {document!r}: the score is NaN")
    return best_first(scores)


def load_run(source: RunSource) -> Mapping[str, Mapping[str, float]]:
    """A run as it is, or read from a file. Raises what `read_run` raises, `ConfigError` for anything else."""
    if isinstance(source, Mapping):
        return source
    return read_run(refuse_other(source, "run"))


def refuse_other(source: Any, what: str) -> Path:
    """`source` as a path. Raises `ConfigError` if it is none."""
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"{what} is a {type(source).__name__}; give a dict of dicts or a path (SearchResult has to_run)"
        )
    return Path(source)


def best_chunks(run: RunSource, separator: str) -> Run:
    """A run over documents from one over their chunks, "doc7#0", "doc7#1": a document's first hit counts (MaxP).

    A document's id is what stands before the last `separator`; an id without it is a document's own. Raises
    `ConfigError` if it is empty or no id of the run holds it, `DataError` for a score that is NaN.
    """
    if not separator:
        raise ConfigError("the separator of documents and chunks is empty; give what stands between, such as '#'")
    found: Run = {}
    seen = False
    for query, scores in load_run(run).items():
        documents = found.setdefault(query, {})
        for chunk in ranking(query, scores):
            document, cut, _ = chunk.rpartition(separator)
            seen = seen or bool(cut)
            documents.setdefault(document if cut else chunk, scores[chunk])
    if not seen and any(found.values()):
        example = next(document for documents in found.values() for document in documents)
        raise ConfigError(f"no document id of the run holds the separator {separator!r}, such as {example!r}")
    return found
