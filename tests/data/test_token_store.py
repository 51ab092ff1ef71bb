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
from ance_fast.data.token_store import TokenStore
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
