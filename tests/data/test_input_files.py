from __future__ import annotations

import gzip
import io
import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from ance_fast.data.input_files import damage, find_file, has_file, is_pipe, list_files, open_bytes, plain_name
from ance_fast.errors import DataError

TEXT = "".join(f"line {number * 7919}\n" for number in range(5000)).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read(path: Path) -> bytes:
    with open_bytes(path) as file:
        return b"".join(file)


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_a_file_is_decompressed_by_its_name(tmp_path: Path, suffix: str, compress) -> None:
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(compress(TEXT))
    assert read(file) == TEXT
    file.write_bytes(compress(TEXT) + compress(b"a second member\n"))
    assert read(file) == TEXT + b"a second member\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_pipe_is_decompressed_by_its_first_bytes(tmp_path: Path, compress) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert is_pipe(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(compress(TEXT)), daemon=True)
    writer.start()
    assert read(pipe) == TEXT


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_the_first_bytes_of_a_pipe_may_come_one_by_one(tmp_path: Path, compress) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert is_pipe(pipe)

    def drop_by_drop() -> None:
        data = compress(TEXT)
        with open(pipe, "wb", buffering=0) as file:
            for byte in data[:6]:
                file.write(bytes([byte]))
                time.sleep(0.02)
            file.write(data[6:])

    writer = threading.Thread(target=drop_by_drop, daemon=True)
    writer.start()
    assert read(pipe) == TEXT
    writer.join()


@pytest.mark.parametrize(("suffix", "compress", "kind"), [(".gz", gzip.compress, "gzip"), (".zst", zstd, "zstd")])
def test_cut_off_and_damaged_files_are_told_from_other_failures(
    tmp_path: Path, suffix: str, compress, kind: str
) -> None:
    file = tmp_path / f"a{suffix}"
    for data in (compress(TEXT)[:-5], compress(TEXT)[:1000], compress(TEXT)[:3], b"not compressed\n"):
        file.write_bytes(data)
        with pytest.raises((OSError, EOFError)) as caught:
            read(file)
        assert (damage(caught.value) or "").startswith(f"damaged or cut-off {kind} file (")
    with pytest.raises(FileNotFoundError) as missing:
        open_bytes(tmp_path / f"none{suffix}")
    assert damage(missing.value) is None
    assert damage(PermissionError(13, "no")) is None
    assert damage(ValueError("x")) is None


def test_a_plain_name_has_no_compression() -> None:
    assert [plain_name(name) for name in ("x/a.tsv.gz", "a.jsonl.zst", "a.tsv", "gz")] == [
        "a.tsv",
        "a.jsonl",
        "a.tsv",
        "gz",
    ]


def test_find_file_takes_plain_before_compressed_and_names_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt.zst").touch()
    assert find_file(tmp_path, "a.txt", "b.txt") == tmp_path / "b.txt.zst"
    (tmp_path / "b.txt.gz").touch()
    assert find_file(tmp_path, "a.txt", "b.txt") == tmp_path / "b.txt.gz"
    (tmp_path / "b.txt").touch()
    assert find_file(tmp_path, "a.txt", "b.txt") == tmp_path / "b.txt"
    assert has_file(tmp_path, "b.txt")
    assert not has_file(tmp_path, "a.txt")


def test_find_file_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of a\.txt, a\.txt\.gz, a\.txt\.zst, b\.txt, .* found"):
        find_file(tmp_path, "a.txt", "b.txt")
    with pytest.raises(DataError, match="no such folder"):
        find_file(tmp_path / "none", "a.txt")


def test_a_folder_or_pattern_stands_for_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    names = ["b.tsv", "a.tsv.gz", "sub/c.tsv", "_d.tsv", ".cache/e.tsv", "f.txt"]
    for name in names:
        (tmp_path / name).touch()
    assert list_files(tmp_path, ".tsv") == [tmp_path / name for name in ("a.tsv.gz", "b.tsv", "sub/c.tsv")]
    assert list_files(f"{tmp_path}/?.t*") == [tmp_path / name for name in ("a.tsv.gz", "b.tsv", "f.txt")]
    assert list_files(tmp_path / "f.txt", ".tsv") == [tmp_path / "f.txt"]
    strange = tmp_path / "[x].tsv"
    strange.touch()
    assert list_files(strange, ".tsv") == [strange], "a name that exists is no pattern"


def test_a_folder_pattern_or_name_without_files_is_an_error(tmp_path: Path) -> None:
    for path, expected in ((tmp_path, "no .a or .b files"), (tmp_path / "*.a", "matches"), (tmp_path / "x", "no such")):
        with pytest.raises(DataError, match=expected):
            list_files(path, ".a", ".b")


def test_standard_input_is_read_from_its_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ance_fast.data import input_files

    stand_in = io.BufferedReader(io.BytesIO(gzip.compress(TEXT)))
    opened = []

    def open_zero(file, mode, **options):
        opened.append((file, options))
        return stand_in

    monkeypatch.setattr(input_files, "open", open_zero, raising=False)
    assert read(input_files.STDIN) == TEXT
    assert opened == [(0, {"closefd": False})]
