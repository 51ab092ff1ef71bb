from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ance_fast.data.records import Document
from ance_fast.data.token_build import Tokenised
from ance_fast.data.token_store import IdColumn, TokenStore
from ance_fast.errors import ArtifactError, ConfigError, DataError

CORPUS = [
    Document("a", "the cat sat on the mat."),
    Document("b", ""),
    Document("c", "dogs", "running"),
    Document("d", "a " * 40),
    Document("ü e", "東京 the"),
]


@pytest.fixture
def store(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> TokenStore:
    return TokenStore.build(CORPUS, tokenizer, tmp_path / "store", max_length=10, shard_rows=2)


@pytest.fixture
def in_memory(tokenizer: PreTrainedTokenizerFast) -> TokenStore:
    texts = [document.full_text for document in CORPUS]
    return TokenStore.from_texts(texts, tokenizer, ids=[document.id for document in CORPUS], max_length=10)


def test_every_row_is_what_the_tokenizer_gives(
    store: TokenStore, in_memory: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> None:
    for one in (store, in_memory):
        assert len(one) == 5
        for row, document in enumerate(CORPUS):
            expected = tokenizer(document.full_text, truncation=True, max_length=10)["input_ids"]
            assert one.tokens(row).tolist() == expected
            assert one.lengths[row] == len(expected)
            assert one.id(row) == document.id
        assert one.lengths.dtype == np.int32
        assert one.num_tokens == one.lengths.sum() == sum(len(values) for values, _ in one.shards)
        assert one.max_length == 10


def test_documents_come_back_from_the_store(store: TokenStore, in_memory: TokenStore) -> None:
    assert [store.document(row) for row in range(5)] == CORPUS
    assert in_memory.document(2) == Document("c", "running dogs")


def test_texts_of_many_rows_come_in_their_order_without_titles(store: TokenStore, in_memory: TokenStore) -> None:
    for one in (store, in_memory):
        for rows in ([], [3], [4, 0, 2, 4, 1]):
            assert one.texts(np.array(rows, dtype=np.int64)) == [one.document(row).text for row in rows]
        for rows in ([0, 5], [-1]):
            with pytest.raises(IndexError, match="of a token store with 5 rows"):
                one.texts(np.array(rows))


def test_rows_count_from_the_end_too_and_stop_at_both(store: TokenStore) -> None:
    assert store.id(-1) == "ü e"
    assert store.document(np.int64(3)).id == "d"
    for row in (5, -6):
        with pytest.raises(IndexError, match=f"row {row} of a token store with 5 rows"):
            store.tokens(row)


def test_ids_are_a_sequence_of_strings(store: TokenStore) -> None:
    ids = [document.id for document in CORPUS]
    assert list(store.ids) == ids
    assert len(store.ids) == 5
    assert store.ids[1:4] == ids[1:4]
    assert store.ids[::-2] == ids[::-2]
    assert (store.ids[0], store.ids[-1]) == ("a", "ü e")
    assert "ü e" in store.ids
    assert "z" not in store.ids
    assert 3 not in store.ids
    with pytest.raises(IndexError):
        store.ids[5]


def test_positions_finds_many_ids_at_once(store: TokenStore) -> None:
    positions = store.positions(["ü e", "nope", "a", "a"])
    assert positions.dtype == np.int64
    assert positions.tolist() == [4, -1, 0, 0]
    assert store.positions([]).tolist() == []


def test_shards_are_views_of_the_mapped_files(store: TokenStore) -> None:
    assert [len(offsets) - 1 for _, offsets in store.shards] == [2, 2, 1]
    for values, offsets in store.shards:
        assert (values.dtype, offsets.dtype) == (np.uint16, np.int32)
        assert not values.flags.owndata
        assert not values.flags.writeable


def test_an_opened_store_takes_no_arrow_memory(store: TokenStore) -> None:
    before = pa.total_allocated_bytes()
    again = TokenStore.open(store.path, verify=False)
    assert pa.total_allocated_bytes() == before
    assert again.num_tokens == store.num_tokens


def test_the_prompt_is_put_before_every_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    store = TokenStore.build(["the cat", ""], tokenizer, tmp_path / "s", max_length=16, prompt="query: ")
    memory = TokenStore.from_texts(["the cat", ""], tokenizer, max_length=16, prompt="query: ")
    for row, text in enumerate(["query: the cat", "query: "]):
        expected = tokenizer(text, truncation=True, max_length=16)["input_ids"]
        assert store.tokens(row).tolist() == memory.tokens(row).tolist() == expected
    assert store.prompt == "query: "
    assert store.document(0).text == "the cat"
    assert store.ids[0:] == ["0", "1"]


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path: Path) -> None:
    vocab = {"[UNK]": 0, **{f"w{number}": number for number in range(1, 70_000)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    large = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    store = TokenStore.build(["w69999 w3"], large, tmp_path / "s", max_length=8)
    assert store.shards[0][0].dtype == np.int32
    assert store.tokens(0).tolist() == [69_999, 3]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=20)] * 3), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_any_text_survives_the_round_trip(
    byte_level: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    shard_rows: int,
) -> None:
    corpus = [Document(f"{identifier}#{number}", text, title) for number, (identifier, text, title) in enumerate(rows)]
    path = tmp_path_factory.mktemp("round") / "store"
    store = TokenStore.build(corpus, byte_level, path, max_length=16, shard_rows=shard_rows)
    assert [store.document(row) for row in range(len(store))] == corpus
    assert store.positions([document.id for document in corpus]).tolist() == list(range(len(corpus)))
    for row, document in enumerate(corpus):
        expected = byte_level(document.full_text, truncation=True, max_length=16)["input_ids"]
        assert store.tokens(row).tolist() == expected


def test_another_tokenizer_limit_or_prompt_is_refused_naming_both(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert len(TokenStore.open(store.path, tokenizer=tokenizer, max_length=10, prompt="")) == 5
    with pytest.raises(ArtifactError, match=rf"built with tokenizer '{store.tokenizer_fingerprint}', opened for token"):
        TokenStore.open(store.path, tokenizer=other_tokenizer)
    with pytest.raises(ArtifactError, match="built with max_length 10, opened for max_length 11"):
        TokenStore.open(store.path, max_length=11)
    with pytest.raises(ArtifactError, match="built with prompt '', opened for prompt 'q'"):
        TokenStore.open(store.path, prompt="q")


def test_damage_anywhere_in_a_file_is_refused(store: TokenStore) -> None:
    file = store.path / "tokens-00001.arrow"
    whole = file.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError, match=r"tokens-00001\.arrow: checksum differs"):
            TokenStore.open(store.path)
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"tokens-00001\.arrow: .* the file is damaged"):
        TokenStore.open(store.path, verify=False)


def test_what_is_missing_or_half_written_is_refused(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        TokenStore.open(tmp_path / "none")
    (store.path / "tokens-00002.arrow").unlink()
    with pytest.raises(ArtifactError, match=r"tokens-00002\.arrow: missing"):
        TokenStore.open(store.path)
    (store.path / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"no manifest\.json, so this is not a token store that was finished"):
        TokenStore.open(store.path)


@pytest.mark.parametrize("change", [{"shards": None}, {"max_length": None}, {"shards": "rows"}])
def test_a_manifest_that_does_not_fit_is_refused(store: TokenStore, change: dict[str, object]) -> None:
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_text())
    for name, value in change.items():
        if value is None:
            del manifest[name]
        else:
            manifest["shards"][0]["rows"] += 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="build the store again"):
        TokenStore.open(store.path)


def test_a_store_goes_to_another_process_by_its_path(store: TokenStore, in_memory: TokenStore) -> None:
    sent = pickle.dumps(store)
    assert len(sent) < 500
    for one, again in ((store, pickle.loads(sent)), (in_memory, pickle.loads(pickle.dumps(in_memory)))):
        assert list(again.ids) == list(one.ids)
        assert all(np.array_equal(again.tokens(row), one.tokens(row)) for row in range(5))


def test_a_store_in_memory_may_be_empty_but_not_ambiguous(tokenizer: PreTrainedTokenizerFast) -> None:
    empty = TokenStore.from_texts([], tokenizer, max_length=8)
    assert (len(empty), empty.num_tokens, empty.lengths.tolist(), list(empty.ids)) == (0, 0, [], [])
    assert empty.positions(["a"]).tolist() == [-1]
    with pytest.raises(ConfigError, match="1 ids for 2 texts"):
        TokenStore.from_texts(["x", "y"], tokenizer, ids=["a"], max_length=8)
    with pytest.raises(DataError, match="'a' comes twice"):
        TokenStore.from_texts(["x", "y"], tokenizer, ids=["a", "a"], max_length=8)


def test_texts_in_memory_are_taken_as_given(byte_level: PreTrainedTokenizerFast) -> None:
    store = TokenStore.from_texts(["  the "], byte_level, max_length=16)
    assert store.tokens(0).tolist() == byte_level("  the ")["input_ids"]


def test_appending_equals_building_from_all_documents(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(f"d{number}", "the cat " * (number % 5), "a dog") for number in range(23)]
    settings = {"max_length": 9, "prompt": "query : ", "shard_rows": 5}
    whole = TokenStore.build(documents, tokenizer, tmp_path / "whole", **settings)
    assert whole.tokenised == Tokenised(23, whole.num_tokens)
    path = tmp_path / "grown"
    opened = TokenStore.build(documents[:12], tokenizer, path, **settings)
    full = {name: (path / name).stat().st_ino for name in ("tokens-00000.arrow", "tokens-00001.arrow")}
    grown = TokenStore.append(path, documents[12:], tokenizer)
    assert grown.tokenised is not None
    assert grown.tokenised.rows == 23 - 10
    assert {name: (path / name).stat().st_ino for name in full} == full
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
    }
    assert [list(opened.tokens(row)) for row in range(12)] == [list(grown.tokens(row)) for row in range(12)]
    assert list(grown.documents()) == documents
    assert len(TokenStore.append(path, [], tokenizer)) == 23


def test_texts_are_appended_under_the_next_numbers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    TokenStore.build(["a cat", "a dog"], tokenizer, tmp_path / "store", max_length=9)
    assert list(TokenStore.append(tmp_path / "store", ["the mat"], tokenizer).ids) == ["0", "1", "2"]


def test_what_cannot_be_appended_leaves_the_store_as_it_is(
    tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    TokenStore.build([("a", "the cat"), ("b", "a dog")], tokenizer, path, max_length=9)
    with pytest.raises(DataError, match="document id 'b' comes twice"):
        TokenStore.append(path, [("b", "again")], tokenizer)
    with pytest.raises(ArtifactError, match="built with tokenizer"):
        TokenStore.append(path, [("c", "x")], other_tokenizer)
    assert list(TokenStore.open(path).ids) == ["a", "b"]
    TokenStore.build([("a", "the cat")], tokenizer, tmp_path / "bare", max_length=9, keep_text=False)
    with pytest.raises(ArtifactError, match="keep_text=False"):
        TokenStore.append(tmp_path / "bare", [("b", "x")], tokenizer)
    with pytest.raises(ArtifactError, match="no such directory"):
        TokenStore.append(tmp_path / "none", [("b", "x")], tokenizer)


@given(st.lists(st.integers(-3, 40), max_size=60), st.integers(1, 9))
def test_positions_are_those_of_a_dictionary(asked: list[int], rows: int) -> None:
    ids = [f"d{number}" for number in range(30)]
    column = IdColumn(pa.chunked_array([ids[start : start + rows] for start in range(0, 30, rows)], pa.large_string()))
    expected = {identifier: row for row, identifier in enumerate(ids)}
    found = column.positions([f"d{number}" for number in asked])
    assert found.dtype == np.int64
    assert found.tolist() == [expected.get(f"d{number}", -1) for number in asked]
