"""Folders that microsoft/ANCE's `msmarco_data.py` and `DPR_data.py` wrote: tokens, and how records and ids correspond.

    passages, train-query, dev-query, ...      records of tokens (`record_file`)
    pid2offset.pickle, qid2offset.pickle       id -> record, a pickled dictionary
    pid2offset                                 id <tab> record, in DPR's folders
    train-qrel.tsv, dev-qrel.tsv               query record <tab> passage record <tab> grade
    train-ann, dev-ann, ...                    query record <tab> passage record <tab> Python list of answers (not read:
                                               without texts there is nothing to look for them in)
    train-data, ann_training_data_N            query record <tab> passage record <tab> negative,negative,...

Of DPR's two sets of questions in one folder, the second's numbers begin again at 0: then lines count, as records do.

Records are not in the order of the original files, so passages get their ids back by way of `pid2offset`; without it
they are called by their numbers. `qid2offset.pickle` is written twice, dev over train: dev queries get their ids back,
train queries are called by their numbers, unless there are no dev queries. Document ids have lost their "D"
(`?prefix=D` gives it back). Source: github.com/microsoft/ANCE (Xiong et al. 2021).
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ance_fast.data.ance_files import read_ann_training_data
from ance_fast.data.dataset import Dataset
from ance_fast.data.plain_pickle import read_number_pairs
from ance_fast.data.qrels import Judgement, Qrels, qrels_from_judgements
from ance_fast.data.record_file import RecordFile
from ance_fast.data.text_lines import read_columns, warn_counted
from ance_fast.data.token_corpus import TokenCorpus, TokenQueries
from ance_fast.errors import DataError

logger = logging.getLogger(__name__)

PASSAGES = "passages"


def read_ance_cache(
    path: str | Path, split: str | None = "train", *, prefix: str = "", negatives: str | None = None
) -> Dataset:
    """A data set of tokens: its corpus and queries have no texts, and are used without being tokenised.

    split: "train", "dev", or, of DPR's folders, also "test", "dev-trivia", "trivia-test" and their like, where there
    are files; None: the corpus alone. prefix: put before every passage id. negatives: an `ann_training_data_N` (or
    `train-data`), in the folder or by its path, whose negatives the data set brings.

    Raises `DataError` with file and byte or line: missing or malformed files, records cut short, mappings that do not
    fit, negatives whose positives are other queries'. Judgements of records that are not there are counted in one
    warning and left out.
    """
    folder = Path(path)
    records = RecordFile(folder / PASSAGES)
    corpus = TokenCorpus(records, partial(_passage_ids, folder, records, prefix), folder.name)
    if split is None:
        return Dataset(folder.name, corpus, {}, Qrels())
    file = folder / record_file_name(split, "query")
    query_records = RecordFile(file)
    asked = TokenCorpus(query_records, partial(_query_ids, folder, query_records, split), file.name)
    judged = folder / f"{record_file_name(split, 'qrel')}.tsv"
    if not judged.is_file():
        judged = folder / record_file_name(split, "ann")
    names = _Names(asked, corpus)
    qrels = Qrels()
    if judged.is_file():
        names.lost, names.first_lost = 0, 0
        qrels = qrels_from_judgements(judged, partial(_judgements, names=names))
        what = "judgements name a record that is not there and are left out"
        warn_counted(logger, names.lost, what, f"{judged}:{names.first_lost}")
    given = None if negatives is None else _negatives(folder, negatives, names, qrels)
    return Dataset(folder.name, corpus, TokenQueries(asked), qrels, split, given, query_tokens=asked)


class _Names:
    """The ids of records, and how many judgements named none."""

    def __init__(self, queries: TokenCorpus, passages: TokenCorpus) -> None:
        self._queries, self._passages = queries, passages
        self.queries, self.passages = len(queries), len(passages)
        self.lost = 0
        self.first_lost = 0

    def query(self, record: int) -> str:
        return self._queries.ids[record]

    def passage(self, record: int) -> str:
        return self._passages.ids[record]

    def lose(self, line: int) -> None:
        self.first_lost = self.first_lost or line
        self.lost += 1


def _judgements(path: Path, names: _Names) -> Iterator[Judgement]:
    graded = path.name.endswith(".tsv")
    lines = list(_numbered(path))
    asked = [query for _, query, _, _ in lines]
    for (line, _, passage, rest), query in zip(lines, asked if graded else _records(path, asked, names), strict=True):
        grade = 1
        if graded:
            try:
                grade = int(rest)
            except ValueError:
                raise DataError(f"{path}:{line}: grade {rest!r} is not an integer") from None
        if query >= names.queries or passage >= names.passages:
            names.lose(line)
        else:
            yield Judgement(line, names.query(query), names.passage(passage), grade)


def _records(path: Path, queries: list[int], names: _Names) -> list[int]:
    """The record of each line's query: its number, or its line where several sets are counted from 0 one by one.

    Raises `DataError` for several sets that are not as many lines as there are queries.
    """
    steps = np.diff(np.array(queries, dtype=np.int64), prepend=-1)
    again = np.flatnonzero((np.array(queries) == 0) & (steps != 1))
    # Negatives that were mined come in any order, judgements may come several to a query: those count records.
    if not len(again) or not ((steps == 1) | (np.array(queries) == 0)).all():
        return queries
    if len(queries) != names.queries:
        raise DataError(
            f"{path}: after {again[0]} lines numbers begin again at 0, so that each line is to be a record, but there "
            f"are {len(queries)} lines and {names.queries} queries: files of several folders are mixed"
        )
    return list(range(len(queries)))


def _numbered(path: Path) -> Iterator[tuple[int, int, int, str]]:
    """(Line, query record, passage record, third column)."""
    for line, (query, passage, rest) in read_columns(path, 3):
        for what, field in (("query", query), ("passage", passage)):
            if not _is_number(field):
                raise DataError(f"{path}:{line}: {what} {field[:60]!r} is not the number of a record")
        yield line, int(query), int(passage), rest


def _negatives(folder: Path, name: str, names: _Names, qrels: Qrels) -> dict[str, list[str]]:
    file = folder / name if (folder / name).is_file() else Path(name)
    data = read_ann_training_data(file)
    found: dict[str, list[str]] = {}
    outside = 0
    for line, query in enumerate(_records(file, data.queries.tolist(), names)):
        records = data.of(line).tolist()
        positive = int(data.positives[line])
        if query < names.queries and positive < names.passages:
            judged = qrels.get(names.query(query))
            if judged and names.passage(positive) not in judged:
                raise DataError(
                    f"{file}: entry {line + 1}: record {positive} is no positive of query record {query}: the file "
                    "numbers the questions of another set, or the records of another cache"
                )
        known = [record for record in records if record < names.passages]
        outside += len(records) - len(known) if query < names.queries else 1
        if known and query < names.queries:
            found.setdefault(names.query(query), []).extend(map(names.passage, known))
    warn_counted(logger, outside, "negatives name a record that is not there and are left out", str(file))
    return {query: list(dict.fromkeys(ids)) for query, ids in found.items()}


def _passage_ids(folder: Path, records: RecordFile, prefix: str) -> pa.Array:
    for file, read in ((folder / "pid2offset.pickle", read_number_pairs), (folder / "pid2offset", _text_pairs)):
        if file.is_file():
            return _ids(_of_records(file, read, len(records)), prefix)
    return _ids(np.arange(len(records)), prefix)


def _query_ids(folder: Path, records: RecordFile, split: str) -> pa.Array:
    file = folder / "qid2offset.pickle"
    last = "dev" if (folder / "dev-query").is_file() else "train"
    if split == last and file.is_file():
        return _ids(_of_records(file, read_number_pairs, len(records)), "")
    return _ids(np.arange(len(records)), "")


def _of_records(file: Path, read: Callable[[Path], tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """The id of each record, int64 [count]. Raises `DataError` unless each record has exactly one."""
    ids, places = read(file)
    outside = np.flatnonzero((places < 0) | (places >= count))
    if len(outside):
        where = f"id {ids[outside[0]]} at record {places[outside[0]]}"
        raise DataError(f"{file}: {where}, but there are {count} records: it belongs to another cache")
    times = np.bincount(places, minlength=count)
    if (times != 1).any():
        record = int(np.flatnonzero(times != 1)[0])
        raise DataError(f"{file}: {times[record]} ids for record {record} of {count}: it belongs to another cache")
    found = np.empty(count, dtype=np.int64)
    found[places] = ids
    return found


def _text_pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids, records) of `id <tab> record` lines, int64."""
    pairs = array("q")
    for line, fields in read_columns(path, 2):
        if not all(_is_number(field.strip()) for field in fields):
            raise DataError(f"{path}:{line}: expected `id <tab> record`, two numbers")
        pairs.extend(map(int, fields))
    numbers = np.frombuffer(pairs, dtype=np.int64).reshape(-1, 2)
    ordered = np.sort(numbers[:, 0])
    again = np.flatnonzero(np.diff(ordered) == 0)
    if len(again):
        raise DataError(f"{path}: id {ordered[again[0]]} comes twice; ids must be unique")
    return numbers[:, 0], numbers[:, 1]


def _is_number(text: str) -> bool:
    # As many digits as fit 64 bits, whatever they are.
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _ids(numbers: np.ndarray, prefix: str) -> pa.Array:
    texts = pc.cast(pa.array(numbers), pa.large_string())
    empty = pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(pa.scalar(prefix, pa.large_string()), texts, empty) if prefix else texts


def record_file_name(split: str, kind: str) -> str:
    """ "dev" -> "dev-query", "dev-trivia" -> "dev-query-trivia", "trivia-test" -> "trivia-test-query"."""
    head, dash, tail = split.rpartition("-")
    return f"{head}-{kind}-{tail}" if dash and tail in ("nq", "trivia") else f"{split}-{kind}"
