"""Training JSONL: one query a line with its documents, complete in itself.

    {"query": "what is ance", "positives": ["ANCE mines its negatives from its own index."]}
    {"id": "q2", "query": "capital of france", "positives": [{"id": "d7", "title": "Paris", "text": "Paris is ..."}],
     "negatives": ["Lyon is ...", {"id": "d9", "text": "Nice is ..."}],
     "positive_scores": [9.1], "negative_scores": [2.5, 1.0]}

(the second is one line in the file). A document is a text, or an object with `text` and optionally `id` and `title`.
Without an id it gets one from a hash of title and text, so equal texts are one document. `id` of a query defaults to
its line number. Scores are a teacher's, one for each document, and optional, as are negatives. Other keys are ignored.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ance_fast.artifacts import atomic_file
from ance_fast.data.dataset import Corpus, Dataset, collect_queries
from ance_fast.data.input_files import plain_name
from ance_fast.data.qrels import Judgement, qrels_from_judgements
from ance_fast.data.records import Document, Query
from ance_fast.data.text_lines import read_json_lines
from ance_fast.errors import DataError


class TrainingRow(NamedTuple):
    """One line to be written; the scores, if any, are one for each document."""

    query: Query
    positives: list[Document]
    negatives: list[Document]
    positive_scores: list[float] | None = None
    negative_scores: list[float] | None = None


class _Row(NamedTuple):
    line: int
    query: Query
    positives: list[Document]
    negatives: list[Document]
    positive_scores: list[float] | None
    negative_scores: list[float] | None


def read_jsonl(path: str | Path, split: str | None = "train") -> Dataset:
    """Read training JSONL. Positives become judgements of grade 1; the corpus streams the file's distinct documents.

    `split` names the result only: a file is one split. The corpus keeps a 16-byte hash of each document while it
    streams, to tell repeats from contradictions. A document that is both positive and negative for a query counts as
    positive. Raises `DataError` with file and line: no query, empty positives, scores of another number than documents,
    a document or query id used for two different texts.
    """
    path = Path(path)
    qrels = qrels_from_judgements(path, _judgements)
    queries: list[tuple[int, Query]] = []
    negatives: dict[str, list[str]] = {}
    scores: dict[str, dict[str, float]] = {}
    for row in _rows(path):
        query_id = row.query.id
        queries.append((row.line, row.query))
        positives = qrels[query_id]
        found = dict.fromkeys(document.id for document in row.negatives if document.id not in positives)
        if found:
            negatives[query_id] = list(found)
        for documents, values in ((row.negatives, row.negative_scores), (row.positives, row.positive_scores)):
            if values is not None:
                ids = (document.id for document in documents)
                scores.setdefault(query_id, {}).update(zip(ids, values, strict=True))
    if not queries:
        raise DataError(f"{path}: the file holds no queries")
    name = plain_name(path).removesuffix(".jsonl")
    corpus = Corpus(path, _distinct_documents, name)
    texts = collect_queries(path, iter(queries))
    return Dataset(name, corpus, texts, qrels, split, negatives or None, scores or None)


def write_jsonl(path: str | Path, rows: Iterable[TrainingRow]) -> None:
    """Write training JSONL, atomically, in the order of `rows`; a name ending in `.gz` is compressed.

    Raises `DataError` for what `read_jsonl` would refuse: no positives, scores that are not finite or not one a
    document.
    """
    path = Path(path)
    with (
        atomic_file(path) as staging,
        open(staging, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.name.endswith(".gz") else raw as file,
    ):
        for row in rows:
            where = f"{path}: query {row.query.id!r}"
            if not row.positives:
                raise DataError(f"{where} has no positives; leave it out")
            value: dict[str, Any] = {"id": row.query.id, "query": row.query.text}
            for name in ("positives", "negatives"):
                value[name] = [_object(document) for document in getattr(row, name)]
            for name in ("positive_scores", "negative_scores"):
                if getattr(row, name) is not None:
                    value[name] = getattr(row, name)
                    _scores(value, name, len(value[name.replace("_scores", "s")]), where)
            file.write((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8"))


def is_training_jsonl(path: str | Path) -> bool:
    """Whether the file's first object is a query with documents, and not a passage of a corpus."""
    first = next(read_json_lines(path), None)
    return first is not None and not {"query", "positives", "negatives"}.isdisjoint(first[1])


def _rows(path: Path) -> Iterator[_Row]:
    for line, value in read_json_lines(path):
        where = f"{path}:{line}"
        query = value.get("query")
        if not isinstance(query, str):
            raise DataError(f"{where}: `query` must be a string" if "query" in value else f"{where}: no `query`")
        positives = _documents(value, "positives", where)
        if not positives:
            raise DataError(f"{where}: positives is empty; a query without a relevant document cannot be trained on")
        negatives = _documents(value, "negatives", where)
        yield _Row(
            line,
            Query(_id(value, str(line), where), query),
            positives,
            negatives,
            _scores(value, "positive_scores", len(positives), where),
            _scores(value, "negative_scores", len(negatives), where),
        )


def _judgements(path: Path) -> Iterator[Judgement]:
    for row in _rows(path):
        for identifier in dict.fromkeys(document.id for document in row.positives):
            yield Judgement(row.line, row.query.id, identifier, 1)


def _distinct_documents(path: Path) -> Iterator[tuple[int, Document]]:
    seen: dict[str, tuple[bytes, int]] = {}
    for row in _rows(path):
        for document in (*row.positives, *row.negatives):
            digest = _digest(document.title, document.text).digest()
            earlier, first = seen.setdefault(document.id, (digest, row.line))
            if earlier != digest:
                raise DataError(
                    f"{path}:{row.line}: document id {document.id!r} has another text than at {path}:{first}; "
                    "ids must be unique"
                )
            if earlier is digest:
                yield row.line, document


def _documents(value: dict[str, Any], key: str, where: str) -> list[Document]:
    items = value.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise DataError(f"{where}: `{key}` must be a list, not {type(items).__name__}")
    return [_document(item, f"{where}: {key}[{number}]") for number, item in enumerate(items)]


def _document(item: Any, where: str) -> Document:
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, dict):
        raise DataError(f"{where} must be a text or an object with `text`, not {type(item).__name__}")
    text, title = item.get("text"), item.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise DataError(f"{where}: `text` and `title` must be strings")
    return Document(_id(item, _digest(title, text).hexdigest(), where), text, title)


def _object(document: Document) -> dict[str, str]:
    title = {"title": document.title} if document.title else {}
    return {"id": document.id, **title, "text": document.text}


def _id(value: dict[str, Any], default: str, where: str) -> str:
    identifier = value.get("id", default)
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return str(identifier)
    if not isinstance(identifier, str) or not identifier:
        raise DataError(f"{where}: `id` must be a string that is not empty, not {identifier!r}")
    return identifier


def _scores(value: dict[str, Any], key: str, expected: int, where: str) -> list[float] | None:
    scores = value.get(key)
    if scores is None:
        return None
    documents = key.replace("_scores", "s")
    if not isinstance(scores, list) or len(scores) != expected:
        got = len(scores) if isinstance(scores, list) else type(scores).__name__
        raise DataError(f"{where}: `{key}` must list one number for each of the {expected} {documents}, got {got}")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise DataError(f"{where}: `{key}` holds {score!r}, which is not a finite number")
    return [float(score) for score in scores]


def _digest(title: str, text: str) -> hashlib.blake2b:
    return hashlib.blake2b(f"{len(title)} {title}{text}".encode(), digest_size=16)
