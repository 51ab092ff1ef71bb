"""Text triples become stores of distinct texts and rows in the file's order, made once."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import ance_fast.data.text_triples as module
from ance_fast.data import load_dataset
from ance_fast.data.sources import load_corpus
from ance_fast.data.text_triples import TextTriples, build_text_triples
from ance_fast.errors import ArtifactError, DataError

WORDS = ["red", "green", "blue", "fox", "dog"]


def words(name: str = "[UNK]") -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([name, "[PAD]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=name))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token=name, pad_token="[PAD]")


def build(file: Path, folder: Path, tokenizer: Any = None, **options: Any) -> TextTriples:
    lengths = {"max_query_length": 4, "max_document_length": 6}
    return build_text_triples(file, tokenizer or words(), folder, **{**lengths, **options})


def tokens(store: Any, row: int) -> list[int]:
    values, offsets = store.shards[0]
    found: list[int] = values[offsets[row] : offsets[row + 1]].tolist()
    return found


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@settings(deadline=None, max_examples=10)
@given(lines=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=12))
def test_rows_name_the_texts_of_each_line_and_no_text_is_kept_twice(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("triples")
    file = folder / "t.tsv"
    file.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    made = build(file, folder / "run")
    tokenizer = words()
    for line, row in zip(lines, made.rows.tolist(), strict=True):
        stores = [(made.queries, 4), (made.passages, 6), (made.passages, 6)]
        for text, number, (store, length) in zip(line, row, stores, strict=True):
            assert tokens(store, number) == tokenizer(text, truncation=True, max_length=length)["input_ids"]
    assert len(made.queries) == len({query for query, _, _ in lines})
    distinct = list(dict.fromkeys(text for _, *both in lines for text in both))
    assert len(made.passages) == len(distinct)
    corpus = load_corpus(f"triples:{file}")
    assert [(document.id, document.text) for document in corpus] == [(str(i), text) for i, text in enumerate(distinct)]


def test_passages_come_with_their_lines_blank_ones_counted(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("red\tfox\tdog\n\nblue\tdog\tcat\n")
    assert [(line, document.text) for line, document in module.distinct_passages(file)] == [
        (1, "fox"),
        (1, "dog"),
        (3, "cat"),
    ]


def test_what_was_made_is_opened_without_reading_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.tsv.gz"
    file.write_bytes(gzip.compress(b"red\tfox\tdog\nblue\tdog\tfox\n"))
    first = build(file, tmp_path / "run")
    monkeypatch.setattr(module, "read_text_triples", lambda path: pytest.fail("read again"))
    again = build(file, tmp_path / "run", replace=False)
    assert again.rows.tolist() == first.rows.tolist() == [[0, 0, 1], [1, 1, 0]]


def test_another_file_or_tokenizer_is_made_anew_or_refused_where_a_run_uses_the_old(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("red\tfox\tdog\n")
    build(file, tmp_path / "run")
    file.write_text("red\tdog\tfox\nred\tdog\tblue\n")
    os.utime(file, ns=(1, 1))
    with pytest.raises(ArtifactError, match="holds the triples of another file, which are in use"):
        build(file, tmp_path / "run", replace=False)
    with pytest.raises(ArtifactError, match="built with tokenizer"):
        build(file, tmp_path / "run", words("[GONE]"), replace=False)
    assert build(file, tmp_path / "run").rows.tolist() == [[0, 0, 1], [0, 0, 2]]


def test_a_build_that_was_cut_off_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("red\tfox\tdog\nonly two\tcolumns\n")
    with pytest.raises(DataError, match=r"t\.tsv:2: expected 3 columns"):
        build(file, tmp_path / "run")
    assert not (tmp_path / "run" / "triples").exists()
    file.write_text("red\tfox\tdog\n")
    assert build(file, tmp_path / "run").rows.tolist() == [[0, 0, 1]]


def test_a_file_without_triples_and_one_that_is_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("\n")
    with pytest.raises(DataError, match=r"t\.tsv: no triples"):
        build(tmp_path / "t.tsv", tmp_path / "run")
    with pytest.raises(DataError, match=r"absent\.tsv: No such file"):
        build(tmp_path / "absent.tsv", tmp_path / "run")


def test_the_form_names_the_file_and_has_no_queries_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("red\tfox\tdog\n")
    dataset = load_dataset(f"triples:{tmp_path / 't.tsv'}", split="train")
    assert (dataset.triples, dataset.queries) == (tmp_path / "t.tsv", {})
