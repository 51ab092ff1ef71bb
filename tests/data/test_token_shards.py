from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ance_fast.data.document_batches import to_arrow
from ance_fast.data.records import Document
from ance_fast.data.token_shards import (
    Recipe,
    adopt_shard,
    make_batch,
    matching_shard,
    read_shard,
    shard_name,
    token_arrays,
    write_shard,
)
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ArtifactError, ConfigError

RECIPE = Recipe("fingerprint", 8, "", "uint16", keep_text=True)
DOCUMENTS = [Document("a", "one", "T"), Document("b", ""), Document("ü", "three 東京")]
TOKENS = Tokens(np.array([1, 2, 3, 65535, 5], dtype=np.uint16), np.array([0, 3, 3, 5]), 1)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / shard_name(0)
    write_shard(path, to_arrow(DOCUMENTS), TOKENS, RECIPE, "content")
    return path


def test_a_shard_is_one_uncompressed_batch_without_nulls(shard: Path) -> None:
    with pa.ipc.open_file(str(shard)) as reader:
        assert reader.num_record_batches == 1
        assert [str(field.type) for field in reader.schema] == [
            "large_string",
            "list<item: uint16>",
            "large_string",
            "large_string",
        ]
        table = reader.read_all()
    assert table.to_pylist() == [
        {"id": "a", "tokens": [1, 2, 3], "title": "T", "text": "one"},
        {"id": "b", "tokens": [], "title": "", "text": ""},
        {"id": "ü", "tokens": [65535, 5], "title": "", "text": "three 東京"},
    ]
    assert all(column.null_count == 0 for column in table.columns)


def test_the_arrays_of_a_shard_are_views_of_the_file(shard: Path) -> None:
    before = pa.total_allocated_bytes()
    offsets, values = token_arrays(read_shard(shard, RECIPE))
    assert pa.total_allocated_bytes() == before
    assert not values.flags.owndata
    assert not values.flags.writeable
    assert (offsets.dtype, values.dtype) == (np.int32, np.uint16)
    assert values.tolist() == [1, 2, 3, 65535, 5]
    assert offsets.tolist() == [0, 3, 3, 5]


def test_equal_rows_give_equal_bytes(shard: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "again", to_arrow(DOCUMENTS), TOKENS, RECIPE, "content")
    assert (tmp_path / "again").read_bytes() == shard.read_bytes()


def test_a_shard_matches_its_own_recipe_and_content_only(shard: Path) -> None:
    info = matching_shard(shard, RECIPE, "content")
    assert info is not None
    assert (info.rows, info.tokens, info.truncated) == (3, 5, 1)
    assert matching_shard(shard, RECIPE, "other content") is None
    assert matching_shard(shard.with_name("none"), RECIPE, "content") is None
    for changed in (
        replace(RECIPE, tokenizer="x"),
        replace(RECIPE, max_length=9),
        replace(RECIPE, prompt="x"),
        replace(RECIPE, dtype="int32"),
        replace(RECIPE, keep_text=False),
    ):
        assert matching_shard(shard, changed, "content") is None


def test_no_damage_to_a_shard_passes_for_a_match_with_other_rows(shard: Path) -> None:
    whole = shard.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        shard.write_bytes(bytes(damaged))
        if matching_shard(shard, RECIPE, "content") is not None:
            # The flipped byte was padding: what is read is still what was written.
            assert read_shard(shard, RECIPE).equals(make_batch(to_arrow(DOCUMENTS), TOKENS, RECIPE))


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_cut_off_shard_is_refused(shard: Path, size: int) -> None:
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"tokens-00000\.arrow: not readable as an Arrow file"):
        read_shard(shard, RECIPE)
    assert matching_shard(shard, RECIPE, "content") is None


@pytest.mark.parametrize("offsets", [[1, 3, 3, 5], [0, 4, 3, 5], [0, -1, 3, 5], [0, 3, 3, 4], [0, 3, 3, 6]])
def test_damaged_offsets_are_refused(shard: Path, offsets: list[int]) -> None:
    written = np.array([0, 3, 3, 5], dtype=np.int32).tobytes()
    whole = shard.read_bytes()
    assert whole.count(written) == 1
    shard.write_bytes(whole.replace(written, np.array(offsets, dtype=np.int32).tobytes()))
    with pytest.raises(ArtifactError, match=r"damaged|not readable"):
        read_shard(shard, RECIPE)


def test_another_arrow_file_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": [1]})
    with pa.OSFile(str(tmp_path / "x"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ArtifactError, match="not a token shard of this store"):
        read_shard(tmp_path / "x", RECIPE)


def test_more_tokens_than_offsets_can_address_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower shard_rows"):
        make_batch(to_arrow(DOCUMENTS), Tokens(TOKENS.values, np.array([0, 1, 2, 1 << 31]), 0), RECIPE)


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    documents = [Document(str(number), "x" * 1000) for number in range(100)]
    tokens = Tokens(np.zeros(100, dtype=np.uint16), np.arange(101), 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel refuses to write more, as on a full disk
    try:
        with pytest.raises(OSError, match=r"could not write the token shard: .*tokens-00000\.arrow"):
            write_shard(path, to_arrow(documents), tokens, RECIPE, "content")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_adopting_a_shard_links_it_or_copies_it(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adopt_shard(shard, tmp_path / "linked")
    assert os.path.samefile(shard, tmp_path / "linked")

    def no_links(*_: object) -> None:
        raise OSError("links are not supported here")

    monkeypatch.setattr(os, "link", no_links)
    adopt_shard(shard, tmp_path / "linked")
    assert not os.path.samefile(shard, tmp_path / "linked")
    assert (tmp_path / "linked").read_bytes() == shard.read_bytes()
