"""Corpora from Hugging Face `datasets`: the hub's, a folder written by `save_to_disk`, a folder of files, an object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ance_fast.data.dataset import Corpus, Dataset, Place
from ance_fast.data.document_fields import FieldNames, make_document
from ance_fast.data.qrels import Qrels
from ance_fast.data.records import Document
from ance_fast.errors import DataError, MissingDependencyError

_ROWS = 1024
_USUAL_SPLITS = ("corpus", "train")


def read_datasets(
    source: Any,
    split: str | None = None,
    *,
    config: str | None = None,
    id: str | None = None,
    text: str | None = None,
    title: str | None = None,
) -> Dataset:
    """A corpus from `datasets`; its rows stream: from the mapped files of a local copy, else from the hub.

    source: `NAME` or `NAME/CONFIG` on the hub (NAME with its owner: `BeIR/scifact/corpus`), a folder, or a `Dataset`,
    `IterableDataset` or dictionary of them. split: the split that holds the passages [default: the only one, else
    `corpus`, else `train`]. id, text, title: columns, where their names are not the usual ones (`document_fields`).
    Raises `DataError`: an unknown name, configuration, split or column, and, with its row, a null or a wrong type;
    `MissingDependencyError` without `datasets`.
    """
    rows, name = (_load(source, config), str(source)) if isinstance(source, (str, Path)) else (source, "a dataset")
    place = f"datasets:{name}"
    if isinstance(rows, dict):
        rows = rows[_choose_split(list(rows), split, place)]
    elif split is not None and str(getattr(rows, "split", None)) != split:
        raise DataError(f"{place}: no split {split!r}; this is one split by itself")
    names = FieldNames(id, text, title)
    corpus = Corpus(place, lambda _: _documents(rows, names, place), Path(name).name)
    return Dataset(corpus.name, corpus, {}, Qrels())


def _load(source: str | Path, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets: corpora need datasets: pip install 'ance_fast[datasets]'") from error
    folder = Path(source)
    try:
        if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            return datasets.load_from_disk(str(folder))
        name = str(source)
        if not folder.exists() and config is None and name.count("/") == 2:
            name, _, config = name.rpartition("/")
        # Offline, what an earlier download left in the cache is read; it does not stream.
        stream = folder.is_dir() or not datasets.config.HF_HUB_OFFLINE
        return datasets.load_dataset(name, config, streaming=stream)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"datasets:{source}: {error}") from error


def _choose_split(present: list[str], asked: str | None, place: str) -> str:
    if asked in present:
        return str(asked)
    usual = [name for name in _USUAL_SPLITS if name in present]
    if asked is None and (len(present) == 1 or usual):
        return present[0] if len(present) == 1 else usual[0]
    problem = f"no split {asked!r}" if asked else "say which split holds the passages (datasets:NAME:SPLIT)"
    raise DataError(f"{place}: {problem}; available: {', '.join(present)}")


def _documents(rows: Any, names: FieldNames, place: str) -> Iterator[tuple[Place, Document]]:
    fields = None
    row = 0
    present = rows.column_names  # None where a stream does not know them before its first row
    if present is not None:
        fields = names.among(present, place)
        rows = rows.select_columns([name for name in fields if name is not None])
    try:
        for batch in rows.iter(_ROWS):
            fields = fields or names.among(batch, place)
            columns = [batch[name] for name in fields if name is not None]
            for cells in zip(*columns, strict=True):
                where = f"{place}: row {row}"
                record = dict(zip((name for name in fields if name is not None), cells, strict=True))
                yield where, make_document(record, fields, where)
                row += 1
    except DataError:
        raise
    except Exception as error:  # whatever its parsers and downloads raise
        raise DataError(f"{place}: row {row}: could not be read: {type(error).__name__}: {error}") from error
