"""Data sets of the `ir_datasets` catalogue: documents, queries and judgements by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ance_fast.data.dataset import Corpus, Dataset, Place, collect_queries
from ance_fast.data.qrels import Judgement, Qrels, qrels_from_judgements
from ance_fast.data.records import Document, Query
from ance_fast.errors import DataError, MissingDependencyError

logger = logging.getLogger(__name__)


def read_irds(name: str, split: str | None = "") -> Dataset:
    """Read `name` from ir_datasets, which fetches what is not on this machine yet. The corpus streams.

    `split="dev"` reads the queries and judgements of `name/dev`, "" those of `name` itself where it has any, None none
    of them. A document's text is its `default_text()`, title included; so is a query's.
    Raises `DataError`: an unknown name or one without documents, queries or judgements that were asked for, a failed
    download; `MissingDependencyError`: ir_datasets, or what it needs for this data set, is not installed.
    """
    whole = f"{name}/{split}" if split else name
    source = _load(whole)
    if not source.has_docs():
        raise DataError(f"irds:{whole}: has no documents")
    corpus = Corpus(f"irds:{name}", lambda _: _documents(source, f"irds:{name}"), name)
    if split is None:
        return Dataset(whole, corpus, {}, Qrels())
    missing = [what for what, there in (("queries", source.has_queries()), ("qrels", source.has_qrels())) if not there]
    if missing and split:
        raise DataError(f"irds:{whole}: has no {' and no '.join(missing)}")
    place = Path(f"irds:{whole}")
    qrels = Qrels() if "qrels" in missing else qrels_from_judgements(place, lambda _: _judgements(source, place))
    queries = {} if "queries" in missing else collect_queries(place, _queries(source, place), qrels or None)
    return Dataset(whole, corpus, queries, qrels, None if missing else whole.rpartition("/")[2])


def _load(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingDependencyError("irds: data sets need ir_datasets: pip install 'ance_fast[irds]'") from error
    try:
        return ir_datasets.load(name)
    except KeyError:
        known = [entry for entry in ir_datasets.registry if entry.startswith(name.split("/")[0])]
        hint = f"those that start alike: {', '.join(known[:8])}" if known else "see https://ir-datasets.com"
        raise DataError(f"irds:{name}: ir_datasets knows no such data set; {hint}") from None


def _documents(source: Any, name: str) -> Iterator[tuple[Place, Document]]:
    with _failures(name):
        for number, document in enumerate(source.docs_iter()):
            yield f"{name}: document {number}", Document(document.doc_id, document.default_text())


def _queries(source: Any, place: Path) -> Iterator[tuple[int, Query]]:
    with _failures(str(place)):
        for number, query in enumerate(source.queries_iter(), 1):
            yield number, Query(query.query_id, query.default_text())


def _judgements(source: Any, place: Path) -> Iterator[Judgement]:
    with _failures(str(place)):
        for number, qrel in enumerate(source.qrels_iter(), 1):
            yield Judgement(number, qrel.query_id, qrel.doc_id, qrel.relevance)


@contextmanager
def _failures(name: str) -> Iterator[None]:
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except ImportError as error:
        raise MissingDependencyError(f"{name}: ir_datasets needs another package for it: {error}") from error
    except Exception as error:  # whatever its parsers and downloads raise
        raise DataError(f"{name}: ir_datasets could not read it: {type(error).__name__}: {error}") from error
