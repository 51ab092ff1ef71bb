from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ance_fast.data.parquet import read_parquet
from ance_fast.data.records import Document
from ance_fast.errors import DataError


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
def test_rows_stream_in_order_across_row_groups(tmp_path: Path, compression: str) -> None:
    count = 3000
    columns = {"id": list(range(count)), "text": [f"t{n}" for n in range(count)], "other": [[1]] * count}
    file = write(tmp_path / "a.parquet", columns, row_group_size=700, compression=compression)
    data = read_parquet(file)
    assert data.name == "a"
    assert list(data.corpus) == [Document(str(n), f"t{n}") for n in range(count)]
    assert len(data.corpus) == count


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]
)
def test_texts_may_be_of_any_type_that_holds_text(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["é", "东京"], pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    file = write(tmp_path / "a.parquet", {"_id": ["a", "b"], "title": ["T", None], "text": column})
    assert list(read_parquet(file).corpus) == [Document("a", "é", "T"), Document("b", "东京")]


def test_columns_may_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"key": [1], "id": [2], "abstract": ["x"], "head": ["h"]})
    assert list(read_parquet(file, id="key", text="abstract", title="head").corpus) == [Document("1", "x", "h")]


def test_a_folder_and_a_pattern_are_one_corpus(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"id": ["b"], "text": ["two"]})
    write(tmp_path / "0.parquet", {"id": ["a"], "text": ["one"]})
    assert [document.id for document in read_parquet(tmp_path).corpus] == ["a", "b"]
    assert [document.id for document in read_parquet(f"{tmp_path}/[01].parquet").corpus] == ["a", "b"]
    write(tmp_path / "2.parquet", {"id": ["x", "a"], "text": ["three", "four"]})
    with pytest.raises(DataError, match=r"2\.parquet: row 1: document id 'a' again, first at .*/0\.parquet: row 0"):
        list(read_parquet(tmp_path).corpus)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": ["a", "b"], "text": ["x", None]}, ": row 1: `text` must be a string, not null"),
        ({"id": ["a", None], "text": ["x", "y"]}, ": row 1: `id` must be a string that is not empty, not None"),
        ({"id": ["a", ""], "text": ["x", "y"]}, ": row 1: `id` must be a string that is not empty, not ''"),
        ({"id": ["a", "b"], "text": [1.5, 2.5]}, ": column `text` holds double, which is no text; name another"),
        ({"id": [1.5], "text": ["x"]}, ": column `id` holds double, which is no id"),
        ({"id": ["a"], "text": [["x"]]}, ": column `text` holds list<.*>, which is no text"),
        ({"id": ["a"], "words": ["x"]}, ": no text: none of `text`.* among `id`, `words`"),
        ({"id": ["a", "b"], "text": [b"x", b"caf\xe9"]}, ": row 1: `text` is not UTF-8 at byte 3"),
    ],
)
def test_bad_columns_and_values_are_refused_with_their_row(
    tmp_path: Path, columns: dict[str, Any], expected: str
) -> None:
    file = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=f"^{file}{expected}"):
        list(read_parquet(file).corpus)


def test_cut_off_files_and_other_files_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"id": list(range(999)), "text": ["x"] * 999})
    whole = file.read_bytes()
    for data in (whole[: len(whole) // 2], b"no parquet", b""):
        file.write_bytes(data)
        with pytest.raises(DataError, match=f"^{file}: not a whole Parquet file"):
            list(read_parquet(file).corpus)
    with pytest.raises(DataError, match="none.parquet: no such file"):
        read_parquet(tmp_path / "none.parquet")
