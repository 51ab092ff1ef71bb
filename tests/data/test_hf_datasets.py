from __future__ import annotations

import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from ance_fast.data.hf_datasets import read_datasets
from ance_fast.data.records import Document
from ance_fast.data.sources import load_corpus
from ance_fast.errors import DataError, MissingDependencyError

ROWS = {"_id": ["a", "b"], "title": ["T", None], "text": ["one", "two"], "extra": [1, 2]}
DOCUMENTS = [Document("a", "one", "T"), Document("b", "two")]


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict(ROWS)


def test_a_saved_dataset_is_read_from_its_folder(tmp_path: Path, rows: Dataset) -> None:
    rows.save_to_disk(tmp_path / "one")
    for spec in (f"datasets:{tmp_path / 'one'}", str(tmp_path / "one")):
        corpus = load_corpus(spec)
        assert list(corpus) == list(corpus) == DOCUMENTS
    swapped = load_corpus(f"datasets:{tmp_path / 'one'}?id=text&text=_id")
    assert list(swapped) == [Document("one", "a", "T"), Document("two", "b")]


def test_a_split_is_chosen_or_named(tmp_path: Path, rows: Dataset) -> None:
    DatasetDict(corpus=rows, queries=rows.select([0])).save_to_disk(tmp_path / "two")
    assert list(load_corpus(f"datasets:{tmp_path / 'two'}")) == DOCUMENTS
    assert list(load_corpus(f"datasets:{tmp_path / 'two'}:queries")) == DOCUMENTS[:1]
    with pytest.raises(DataError, match="no split 'test'; available: corpus, queries"):
        load_corpus(f"datasets:{tmp_path / 'two'}:test")
    DatasetDict(x=rows, y=rows).save_to_disk(tmp_path / "xy")
    with pytest.raises(DataError, match=r"say which split holds the passages \(datasets:NAME:SPLIT\); available: x, y"):
        load_corpus(f"datasets:{tmp_path / 'xy'}")
    DatasetDict(x=rows).save_to_disk(tmp_path / "x")
    assert len(load_corpus(f"datasets:{tmp_path / 'x'}")) == 2


def test_a_folder_of_files_streams(tmp_path: Path, rows: Dataset) -> None:
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files" / "train.parquet")
    assert list(read_datasets(tmp_path / "files").corpus) == DOCUMENTS


def test_datasets_that_are_loaded_already_are_taken(rows: Dataset) -> None:
    stream = IterableDataset.from_generator(lambda: ({key: ROWS[key][row] for key in ROWS} for row in range(2)))
    for source in (rows, stream, rows.to_iterable_dataset(), DatasetDict(train=rows)):
        assert list(read_datasets(source).corpus) == DOCUMENTS
    with pytest.raises(DataError, match="no split 'test'; this is one split by itself"):
        read_datasets(rows, "test")


def test_bad_rows_and_columns_are_named(tmp_path: Path) -> None:
    bad = Dataset.from_dict({"id": ["a", "b"], "text": ["x", None]})
    with pytest.raises(DataError, match="datasets:a dataset: row 1: `text` must be a string, not null"):
        list(read_datasets(bad).corpus)
    with pytest.raises(DataError, match="no text: none of `body` among `id`, `text`"):
        list(read_datasets(bad, text="body").corpus)
    twice = Dataset.from_dict({"id": ["a", "a"], "text": ["x", "y"]})
    with pytest.raises(DataError, match="row 1: document id 'a' again, first at datasets:a dataset: row 0"):
        list(read_datasets(twice).corpus)


@pytest.mark.timeout(120)
def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^datasets:nobody/no-such-dataset: \S"):
        load_corpus("datasets:nobody/no-such-dataset")


def test_a_failure_while_reading_says_where() -> None:
    def broken():
        yield {"id": "a", "text": "x"}
        raise OSError("connection lost")

    with pytest.raises(DataError, match=r"row 0: could not be read: \w+: .*connection lost"):
        list(read_datasets(IterableDataset.from_generator(broken)).corpus)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ance_fast\[datasets\]'"):
        read_datasets(tmp_path)
