from __future__ import annotations

import json
import logging
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ance_fast.data import TokenStore, ance_cache_writer, load_corpus, load_dataset, token_import
from ance_fast.data.ance_cache import read_ance_cache
from ance_fast.data.ance_cache_writer import write_ance_passages, write_ance_queries
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.record_file import write_records
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ArtifactError, ConfigError, DataError

LENGTH = 6
# In the order of the records, which is not that of the ids.
PASSAGES = {"70": "the cat", "3": "a dog sat on the mat", "12": "run"}
QUERIES = {"1048": "cat", "55": "dog run"}


def write_cache(path: Path, texts: list[str], tokenizer: Any, length: int) -> list[list[int]]:
    """Record by record, as `msmarco_data.py` does; returns the ids."""
    rows = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    with open(path, "wb") as file:
        for row in rows:
            padded = row + [tokenizer.pad_token_id] * (length - len(row))
            file.write(len(row).to_bytes(4, "big") + struct.pack(f"<{length}i", *padded))
    meta = {"type": "int32", "total_number": len(rows), "embedding_size": length}
    path.with_name(path.name + "_meta").write_text(json.dumps(meta))
    return rows


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    folder = tmp_path / "preprocessed"
    folder.mkdir()
    write_cache(folder / "passages", list(PASSAGES.values()), tokenizer, LENGTH)
    write_cache(folder / "train-query", list(QUERIES.values()), tokenizer, 4)
    write_cache(folder / "dev-query", list(QUERIES.values()), tokenizer, 4)
    (folder / "pid2offset.pickle").write_bytes(pickle.dumps({int(p): row for row, p in enumerate(PASSAGES)}, 4))
    (folder / "qid2offset.pickle").write_bytes(pickle.dumps({int(q): row for row, q in enumerate(QUERIES)}, 4))
    (folder / "train-qrel.tsv").write_text("0\t0\t1\n1\t1\t1\n1\t2\t1\n")
    (folder / "dev-qrel.tsv").write_text("0\t0\t3\n1\t2\t0\n")
    return folder


def rows_of(store: TokenStore) -> list[list[int]]:
    return [store.tokens(row).tolist() for row in range(len(store))]


@pytest.mark.parametrize("num_proc", [1, 3])
def test_a_store_of_a_cache_is_the_store_of_its_texts(
    folder: Path, tmp_path: Path, tokenizer: Any, num_proc: int
) -> None:
    corpus = load_corpus(f"ance-cache:{folder}")
    store = TokenStore.build(corpus, tokenizer, tmp_path / "s", max_length=LENGTH, num_proc=num_proc)
    expected = TokenStore.from_texts(list(PASSAGES.values()), tokenizer, ids=list(PASSAGES), max_length=LENGTH)
    assert rows_of(store) == rows_of(expected)
    assert list(store.ids) == list(PASSAGES)
    assert store.tokenizer_fingerprint == expected.tokenizer_fingerprint
    assert store.shards[0][0].dtype == expected.shards[0][0].dtype
    TokenStore.open(tmp_path / "s", tokenizer=tokenizer, max_length=LENGTH, prompt="")
    with pytest.raises(ArtifactError, match="keep_text=False"):
        store.document(0)


def test_queries_and_judgements_are_those_of_the_records(folder: Path, tokenizer: Any) -> None:
    train, dev = (load_dataset(folder, split=split) for split in ("train", "dev"))
    assert list(train.queries) == ["0", "1"]
    assert train.qrels == {"0": {"70": 1}, "1": {"3": 1, "12": 1}}
    assert list(dev.queries) == list(QUERIES)
    assert dev.qrels == {"1048": {"70": 3}, "55": {"12": 0}}
    assert dev.qrels.where("55") == f"{folder / 'dev-qrel.tsv'}:2"
    assert load_dataset(f"ance-cache:{folder}?prefix=D").qrels == {"0": {"D70": 1}, "1": {"D3": 1, "D12": 1}}
    store = TokenStore.of_queries(dev, ["55", "1048"], tokenizer, max_length=4)
    expected = TokenStore.from_texts([QUERIES["55"], QUERIES["1048"]], tokenizer, ids=["55", "1048"], max_length=4)
    assert rows_of(store) == rows_of(expected)
    assert list(store.ids) == ["55", "1048"]


def test_texts_are_refused_where_there_are_none(folder: Path) -> None:
    data = load_dataset(folder)
    for use in (lambda: list(data.corpus), lambda: data.queries["0"], lambda: dict(data.queries)):
        with pytest.raises(DataError, match="holds tokens and no texts"):
            use()
    assert "0" in data.queries
    assert "9" not in data.queries
    assert len(data.corpus) == 3


def test_without_mappings_records_are_called_by_their_numbers(folder: Path) -> None:
    for name in ("pid2offset.pickle", "qid2offset.pickle"):
        (folder / name).unlink()
    data = load_dataset(folder, split="dev")
    assert data.qrels == {"0": {"0": 3}, "1": {"2": 0}}


def test_a_dpr_folder_has_text_mappings_answers_and_negatives(folder: Path) -> None:
    (folder / "pid2offset.pickle").rename(folder / "unused")
    (folder / "train-qrel.tsv").unlink()
    (folder / "pid2offset").write_text("".join(f"{p}\t{row}\n" for row, p in enumerate(PASSAGES)))
    (folder / "train-ann").write_text("0\t0\t['a', \"b's\"]\n1\t1\t[]\n")
    (folder / "train-data").write_text("0\t0\t1,2,1\n1\t1\t0\n")
    data = load_dataset(f"ance-cache:{folder}?negatives=train-data")
    assert data.qrels == {"0": {"70": 1}, "1": {"3": 1}}
    assert data.negatives == {"0": ["3", "12"], "1": ["70"]}


def test_two_sets_of_questions_are_each_counted_from_0(folder: Path, tokenizer: Any) -> None:
    write_cache(folder / "train-query", ["a", "cat", "dog"], tokenizer, 4)
    (folder / "train-qrel.tsv").unlink()
    (folder / "train-ann").write_text("0\t0\t['a']\n1\t1\t['b']\n0\t2\t['c']\n")
    (folder / "train-data").write_text("0\t0\t1\n1\t1\t0\n0\t2\t0,1\n")
    data = load_dataset(f"ance-cache:{folder}?negatives=train-data")
    assert data.qrels == {"0": {"70": 1}, "1": {"3": 1}, "2": {"12": 1}}
    assert data.negatives == {"0": ["3"], "1": ["70"], "2": ["70", "3"]}
    for name in ("train-ann", "train-data"):
        kept = (folder / name).read_text()
        (folder / name).write_text(kept + "1\t0\t2\n")
        with pytest.raises(
            DataError, match=f"{name}: after 2 lines numbers begin again at 0, .* 4 lines and 3 queries"
        ):
            load_dataset(f"ance-cache:{folder}?negatives=train-data")
        (folder / name).write_text(kept)
    # Mined negatives come in any order.
    (folder / "ann_training_data_0").write_text("2\t2\t1\n0\t0\t1\n1\t1\t0\n")
    data = load_dataset(f"ance-cache:{folder}?negatives=ann_training_data_0")
    assert data.negatives == {"2": ["3"], "0": ["3"], "1": ["70"]}
    # The second set's own file, which counts from 0 too.
    (folder / "train-data-trivia").write_text("0\t2\t0\n")
    with pytest.raises(DataError, match="train-data-trivia: entry 1: record 2 is no positive of query record 0"):
        load_dataset(f"ance-cache:{folder}?negatives=train-data-trivia")


def test_judgements_of_records_that_are_not_there_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train-qrel.tsv").write_text("0\t0\t1\n1\t3\t1\n2\t0\t1\n")
    with caplog.at_level(logging.WARNING):
        assert load_dataset(folder).qrels == {"0": {"70": 1}}
    assert "2 judgements name a record that is not there and are left out (first:" in caplog.text
    assert "train-qrel.tsv:2)" in caplog.text
    for number in ("-1", "9" * 5000):
        (folder / "train-qrel.tsv").write_text(f"0\t0\t1\n1\t{number}\t1\n")
        with pytest.raises(DataError, match=r"train-qrel\.tsv:2: passage '[-19]*' is not the number of a record"):
            load_dataset(folder)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({1: 0, 2: 1}, "0 ids for record 2 of 3: it belongs to another cache"),
        ({1: 0, 2: 1, 3: 1}, "2 ids for record 1 of 3"),
        ({1: 0, 2: 1, 3: 3}, "id 3 at record 3, but there are 3 records"),
        ({1: 0, 2: 1, 3: -1}, "id 3 at record -1"),
        ({"1": 0}, "expected a pickled dictionary of integers"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, tokenizer: Any, value: Any, expected: str
) -> None:
    (folder / "pid2offset.pickle").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"pid2offset\.pickle: " + expected):
        TokenStore.build(load_corpus(folder), tokenizer, tmp_path / "s", max_length=LENGTH)
    assert not (tmp_path / "s").exists()


def test_a_store_must_suit_its_records(folder: Path, tmp_path: Path, tokenizer: Any, other_tokenizer: Any) -> None:
    corpus = load_corpus(folder)
    with pytest.raises(ConfigError, match="texts were cut at 6 tokens, this model is to take 5"):
        TokenStore.build(corpus, tokenizer, tmp_path / "s", max_length=5)
    with pytest.raises(ConfigError, match="the prompt 'passage: ' cannot be put any more"):
        TokenStore.build(corpus, tokenizer, tmp_path / "s", max_length=LENGTH, prompt="passage: ")
    store = TokenStore.build(corpus, tokenizer, tmp_path / "s", max_length=LENGTH)
    before = (tmp_path / "s" / "tokens-00000.arrow").stat().st_mtime_ns
    assert len(TokenStore.build(corpus, tokenizer, tmp_path / "s", max_length=LENGTH, replace=False)) == len(store)
    assert (tmp_path / "s" / "tokens-00000.arrow").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="built with tokenizer"):
        TokenStore.build(corpus, other_tokenizer, tmp_path / "s", max_length=LENGTH)
    write_cache(folder / "passages", ["a", "the cat", "run"], tokenizer, LENGTH)
    with pytest.raises(ArtifactError, match="holds another corpus, which is in use"):
        TokenStore.build(load_corpus(folder), tokenizer, tmp_path / "s", max_length=LENGTH, replace=False)

    def refuse(_: TokenStore) -> None:
        raise ConfigError("not this one")

    with pytest.raises(ConfigError, match="not this one"):
        TokenStore.build(load_corpus(folder), tokenizer, tmp_path / "s", max_length=LENGTH, accept=refuse)
    assert TokenStore.open(tmp_path / "s").tokens(0).tolist() == store.tokens(0).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessed", "s"]


def test_long_records_are_cut_into_chunks_as_documents_are(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    rules = ChunkRules(3, 2, first_token=False, keep_empty=True)
    store = TokenStore.build(load_corpus(folder), tokenizer, tmp_path / "s", max_length=3, chunks=rules)
    corpus = list(PASSAGES.items())
    expected = TokenStore.build(corpus, tokenizer, tmp_path / "t", max_length=3, chunks=rules, keep_text=False)
    assert rows_of(store) == rows_of(expected)
    assert list(store.ids) == list(expected.ids)


@pytest.mark.parametrize("drops_end", [False, True])
def test_records_longer_than_their_chunks_are_cut_as_texts_are(
    folder: Path, tmp_path: Path, tokenizer: Any, drops_end: bool
) -> None:
    tokenizer.init_kwargs["truncation_drops_end"] = drops_end
    rules = ChunkRules(4, 2, first_token=True, keep_empty=False)
    corpus = [("1", "the cat sat on the mat the cat"), ("2", "a dog"), ("3", "a dog sat on the mat")]
    write_cache(folder / "passages", [text for _, text in corpus], tokenizer, 10)
    (folder / "pid2offset.pickle").write_bytes(pickle.dumps({1: 0, 2: 1, 3: 2}))
    store = TokenStore.build(load_corpus(folder), tokenizer, tmp_path / "s", max_length=4, chunks=rules)
    expected = TokenStore.build(corpus, tokenizer, tmp_path / "t", max_length=4, chunks=rules, keep_text=False)
    assert rows_of(store) == rows_of(expected)
    assert store.manifest["truncated"] == expected.manifest["truncated"] == 2


def test_a_padding_token_in_a_text_is_left_out_where_the_tokenizer_does_so(
    folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    write_cache(folder / "passages", ["the [PAD] cat", "a", "run"], tokenizer, LENGTH)
    tokenizer.init_kwargs["padding_left_out"] = True
    store = TokenStore.build(load_corpus(folder), tokenizer, tmp_path / "s", max_length=LENGTH)
    assert rows_of(store)[0] == tokenizer("the cat")["input_ids"]


def test_what_is_written_is_what_the_original_would_have_written(
    folder: Path, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pad = tokenizer.pad_token_id
    passages = TokenStore.from_texts(list(PASSAGES.values()), tokenizer, ids=list(PASSAGES), max_length=LENGTH)
    queries = TokenStore.from_texts(list(QUERIES.values()), tokenizer, ids=list(QUERIES), max_length=4)
    made = tmp_path / "made"
    write_ance_passages(made, passages, pad)
    write_ance_queries(made, "train", queries, {"1048": {"70": 1}, "55": {"3": 2, "12": 1, "70": 0}}, passages, pad)
    with caplog.at_level(logging.WARNING):
        write_ance_queries(made, "dev", queries, {"1048": {"70": 3}, "55": {"12": 0, "9": 1}}, passages, pad)
    assert "1 judgements name a passage that is not in the store" in caplog.text
    for name in ("passages", "passages_meta", "train-query", "dev-query_meta", "train-qrel.tsv", "dev-qrel.tsv"):
        assert (made / name).read_bytes() == (folder / name).read_bytes(), name
    for name in ("pid2offset.pickle", "qid2offset.pickle"):
        assert pickle.loads((made / name).read_bytes()) == pickle.loads((folder / name).read_bytes())
    back = read_ance_cache(made, "dev")
    assert back.qrels == {"1048": {"70": 3}, "55": {"12": 0}}


def test_query_ids_are_those_of_dev_whatever_was_written_last(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    passages = TokenStore.from_texts(["a", "cat"], tokenizer, ids=["1", "2"], max_length=4)
    queries = {
        split: TokenStore.from_texts(["a", "b"], tokenizer, ids=ids, max_length=4)
        for split, ids in {"train": ["10", "11"], "dev": ["20", "21"], "test2019": ["30", "31"]}.items()
    }
    for order in (["train", "dev", "test2019"], ["dev", "test2019", "train"]):
        made = tmp_path / order[0]
        for split in order:
            judged = {queries[split].id(0): {"1": 1}}
            write_ance_queries(made, split, queries[split], judged, passages, tokenizer.pad_token_id)
            # Read at every moment as what was written, or by number.
            for written in order[: order.index(split) + 1]:
                if written == "dev" or split == "train" == order[0]:
                    assert read_query_ids(made, written, passages, tokenizer) == list(queries[written].ids)
                else:
                    assert read_query_ids(made, written, passages, tokenizer) == ["0", "1"]


def read_query_ids(folder: Path, split: str, passages: TokenStore, tokenizer: Any) -> list[str]:
    write_ance_passages(folder, passages, tokenizer.pad_token_id)
    return list(read_ance_cache(folder, split).queries)


def test_passages_of_another_cache_are_not_written_over(
    folder: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pad, texts = tokenizer.pad_token_id, list(PASSAGES.values())
    same = TokenStore.from_texts(texts, tokenizer, ids=list(PASSAGES), max_length=LENGTH)
    before = (folder / "passages").stat()
    write_ance_passages(folder, same, pad)
    assert (folder / "passages").stat().st_ino == before.st_ino
    for other in ([*texts[:2], "sat"], texts[:2], [*texts[:2], "the"]):
        store = TokenStore.from_texts(other, tokenizer, ids=[str(row) for row in range(len(other))], max_length=LENGTH)
        with pytest.raises(ArtifactError, match="holds other passages than those to be written"):
            write_ance_passages(folder, store, pad)
    assert list(load_corpus(folder).ids) == list(PASSAGES)  # type: ignore[attr-defined]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    made = tmp_path / "made"
    with monkeypatch.context() as patch:
        patch.setattr(ance_cache_writer, "_write_mapping", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_ance_passages(made, same, pad)
    with pytest.raises(DataError, match="passages_meta: no such file"):
        load_corpus(f"ance-cache:{made}")
    write_ance_passages(made, same, pad)
    assert list(load_corpus(made).ids) == list(PASSAGES)  # type: ignore[attr-defined]


def test_ids_that_are_no_numbers_have_no_mapping(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    documents = TokenStore.from_texts(["a", "cat"], tokenizer, ids=["D7", "D12"], max_length=4)
    write_ance_passages(tmp_path, documents, tokenizer.pad_token_id)
    assert pickle.loads((tmp_path / "pid2offset.pickle").read_bytes()) == {7: 0, 12: 1}
    assert list(load_corpus(f"ance-cache:{tmp_path}?prefix=D").ids) == ["D7", "D12"]  # type: ignore[attr-defined]
    for ids in (["7", "x"], ["D7", "7"], ["7", "07"], ["7", str(1 << 63)], ["7", "9" * 5000]):
        caplog.clear()
        named = TokenStore.from_texts(["a", "cat"], tokenizer, ids=ids, max_length=4)
        with caplog.at_level(logging.WARNING):
            write_ance_passages(tmp_path, named, tokenizer.pad_token_id)
        assert "not all ids are numbers" in caplog.text
        assert not (tmp_path / "pid2offset.pickle").exists()


def test_a_cache_of_several_shards_comes_back_token_for_token(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    rows = [
        [tokenizer.cls_token_id, *random.integers(5, len(tokenizer), count).tolist()]
        for count in random.integers(0, 8, 500)
    ]
    tokens = Tokens(np.array([one for row in rows for one in row]), np.cumsum([0, *map(len, rows)]), 0)
    write_records(tmp_path / "passages", 8, tokenizer.pad_token_id, [tokens])
    monkeypatch.setattr(token_import, "_SHARD_IDS", 8 * 64)
    store = TokenStore.build(load_corpus(tmp_path), tokenizer, tmp_path / "s", max_length=8, num_proc=2)
    assert rows_of(store) == rows
    assert len(store.shards) == 8
