"""Documents cut into chunks: the tokens of each, their ids, and the store they lie in."""

from __future__ import annotations

import itertools
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data import ChunkRules, Document, TokenStore
from ance_fast.data.chunked_documents import groups_by_id
from ance_fast.data.chunks import OURS, RELEASED, Chunker
from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ArtifactError, ConfigError

CLS, SEP = 2, 3
TEXTS = ["the cat sat on the mat", "a", "", "dog " * 40, "run the dog on a mat . cat"]
CORPUS = [Document(f"d#{number}", text, "the title" if number % 2 else "") for number, text in enumerate(TEXTS)]


def rows(values: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [values[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def token_lists(lists: list[list[int]]) -> Tokens:
    offsets = np.cumsum([0, *(len(tokens) for tokens in lists)])
    return Tokens(np.array([token for tokens in lists for token in tokens], dtype=np.uint16), offsets, 0)


def expected(text: list[int], rules: ChunkRules, *, drops_end: bool) -> list[list[int]]:
    """The chunks of a document of these tokens without special ones, in plain Python."""
    length, count = rules.length, rules.count
    if not rules.first_token:
        whole = [CLS, *text, SEP]
        if len(whole) > length * count:
            whole = whole[: length * count] if drops_end else [*whole[: length * count - 1], SEP]
        chunks = [whole[start : start + length] for start in range(0, len(whole), length)]
    else:
        room = length - (1 if drops_end else 2)
        chunks = [[CLS, *text[start : start + room], SEP][:length] for start in range(0, len(text), room)]
        chunks = chunks[:count] or [[CLS, SEP]]
        if drops_end:
            # No end where the text goes on.
            going_on = [len(text) > (number + 1) * room for number in range(len(chunks))]
            chunks = [c[:-1] if on and c[-1] == SEP else c for c, on in zip(chunks, going_on, strict=True)]
    return chunks + [[] for _ in range(count - len(chunks)) if rules.keep_empty]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    length=st.integers(3, 8),
    count=st.integers(1, 5),
    first_token=st.booleans(),
    keep_empty=st.booleans(),
    drops_end=st.booleans(),
)
def test_chunks_are_those_of_a_plain_statement_of_the_rules(
    lengths: list[int], length: int, count: int, first_token: bool, keep_empty: bool, drops_end: bool
) -> None:
    rules = ChunkRules(length, count, first_token, keep_empty)
    chunker = Chunker(rules, (CLS,), (SEP,), drops_end)
    texts = [[10 + place for place in range(size)] for size in lengths]
    whole = [[CLS, *text, SEP] for text in texts]
    limit = chunker.max_length
    cut = [t if len(t) <= limit else t[:limit] if drops_end else [*t[: limit - 1], SEP] for t in whole]
    split, counts = chunker.split(token_lists(cut))
    wanted = [expected(text, rules, drops_end=drops_end) for text in texts]
    assert counts.tolist() == [len(chunks) for chunks in wanted]
    assert rows(split.values, split.offsets) == [chunk for chunks in wanted for chunk in chunks]
    assert split.values.dtype == np.uint16
    assert all(len(chunk) <= length for chunks in wanted for chunk in chunks)


def test_released_chunks_are_the_reshape_of_one_padded_sequence(tokenizer: Any) -> None:
    rules = ChunkRules(8, 4, first_token=False, keep_empty=True)
    store = TokenStore.from_texts(TEXTS, tokenizer, max_length=8, chunks=rules)
    padded = tokenizer(TEXTS, truncation=True, padding="max_length", max_length=32)
    ids, mask = (np.array(padded[name]).reshape(-1, 8) for name in ("input_ids", "attention_mask"))
    assert len(store) == len(ids) == 4 * len(TEXTS)
    for row in range(len(store)):
        assert store.tokens(row).tolist() == ids[row][mask[row] == 1].tolist()
    assert store.chunked is not None
    assert store.chunked.filled.tolist() == mask[:, 0].reshape(-1, 4).sum(axis=1).tolist()


def test_our_chunks_are_passages_of_their_own(tokenizer: Any) -> None:
    rules = ChunkRules(8, 4, first_token=True, keep_empty=False)
    store = TokenStore.from_texts(TEXTS, tokenizer, ids=list("abcde"), max_length=8, chunks=rules)
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    wanted = [[CLS, *text[at : at + 6], SEP] for text in plain for at in range(0, max(1, min(24, len(text))), 6)]
    assert [store.tokens(row).tolist() for row in range(len(store))] == wanted
    assert list(store.ids) == ["a#0", "b#0", "c#0", "d#0", "d#1", "d#2", "d#3", "e#0", "e#1"]


@pytest.mark.parametrize("rules", [ChunkRules(8, 3, False, True), ChunkRules(8, 3, True, False)])
def test_a_store_on_disk_knows_its_documents(tokenizer: Any, tmp_path: Path, rules: ChunkRules) -> None:
    built = TokenStore.build(CORPUS, tokenizer, tmp_path / "s", max_length=8, chunks=rules, shard_rows=2)
    store = TokenStore.open(tmp_path / "s", chunks=rules)
    memory = TokenStore.from_texts([d.full_text for d in CORPUS], tokenizer, max_length=8, chunks=rules)
    assert [store.tokens(row).tolist() for row in range(len(store))] == [
        memory.tokens(row).tolist() for row in range(len(memory))
    ]
    assert store.chunks == rules
    documents = store.chunked
    assert documents is not None
    assert list(documents.ids) == [document.id for document in CORPUS]
    names = [identifier.rpartition("#") for identifier in store.ids]
    assert [documents.ids[int(number)] for number in documents.numbers] == [name for name, _, _ in names]
    owner = [list(documents.numbers[:row]).count(number) for row, number in enumerate(documents.numbers)]
    assert [int(chunk) for _, _, chunk in names] == owner
    assert list(store.documents()) == CORPUS
    assert [store.document(row) for row in range(len(store))] == [CORPUS[number] for number in documents.numbers]
    backwards = np.arange(len(store))[::-1]
    assert store.texts(backwards) == [CORPUS[number].text for number in documents.numbers[backwards]]
    assert store.corpus.texts(np.array([3, 0])) == [CORPUS[3].text, CORPUS[0].text]
    assert documents.positions(["d#3", "d#3#0", "d#0"]).tolist() == [3, -1, 0]
    offsets, of_two = documents.rows_of(np.array([3, 1]))
    assert offsets.tolist() == [0, documents.filled[3], documents.filled[3] + documents.filled[1]]
    assert all(len(store.tokens(int(row))) for row in of_two)
    assert documents.numbers[of_two].tolist() == [3] * documents.filled[3] + [1] * documents.filled[1]
    ends, every = documents.all_rows((np.array([0, 0, 2]), np.array([4, 0])))
    assert [sorted(set(documents.numbers[every[a:b]])) for a, b in itertools.pairwise(ends)] == [
        [],
        [0, 4],
    ]
    groups = groups_by_id(store.ids.arrow, "#")
    with pytest.raises(ConfigError, match="document_separator is empty"):
        groups_by_id(store.ids.arrow, "")
    assert (groups.numbers.tolist(), list(groups.ids), groups.most) == (
        documents.numbers.tolist(),
        list(documents.ids),
        documents.most,
    )
    copy = pickle.loads(pickle.dumps(documents))
    assert (list(copy.ids), copy.starts.tolist()) == (list(documents.ids), documents.starts.tolist())
    assert built.tokenised is not None
    again = TokenStore.build(CORPUS, tokenizer, tmp_path / "s", max_length=8, chunks=rules, shard_rows=2)
    assert again.tokenised is not None
    assert again.tokenised.rows == 0


def test_appending_to_chunks_gives_the_bytes_of_one_build(tokenizer: Any, tmp_path: Path) -> None:
    rules = ChunkRules(8, 3, True, False)
    settings = {"max_length": 8, "chunks": rules, "shard_rows": 2}
    TokenStore.build(CORPUS[:3], tokenizer, tmp_path / "grown", **settings)
    grown = TokenStore.append(tmp_path / "grown", [*CORPUS[3:], "the fifth"], tokenizer)
    whole = TokenStore.build([*CORPUS, ("5", "the fifth")], tokenizer, tmp_path / "whole", **settings)
    assert list(grown.ids) == list(whole.ids)
    names = [shard["file"] for shard in whole.manifest["shards"]]
    assert all((tmp_path / "grown" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


def test_a_chunker_travels_to_other_processes(tokenizer: Any) -> None:
    chunker = Chunker.for_tokenizer(tokenizer, OURS)
    assert (chunker.prefix, chunker.suffix, chunker.max_length) == ((CLS,), (SEP,), 4 * 510 + 2)
    assert pickle.loads(pickle.dumps(chunker)) == chunker


def test_other_chunks_are_refused_and_a_plain_store_says_nothing_of_chunks(tokenizer: Any, tmp_path: Path) -> None:
    plain = TokenStore.build(CORPUS, tokenizer, tmp_path / "plain", max_length=8)
    assert (plain.chunks, plain.chunked, "chunks" in plain.manifest) == (None, None, False)
    rules = ChunkRules(8, 3, True, False)
    TokenStore.build(CORPUS, tokenizer, tmp_path / "cut", max_length=8, chunks=rules)
    other = ChunkRules(8, 2, True, False)
    with pytest.raises(ArtifactError, match=r"built with chunks .*count=3.*, opened for chunks .*count=2"):
        TokenStore.open(tmp_path / "cut", chunks=other)
    for path, wanted in (("cut", other), ("plain", rules), ("cut", None)):
        with pytest.raises(ArtifactError, match="holds a token store built with chunks"):
            TokenStore.build(CORPUS, tokenizer, tmp_path / path, max_length=8, chunks=wanted)
    with pytest.raises(ConfigError, match="max_length=9, but chunks of 8 tokens"):
        TokenStore.from_texts(TEXTS, tokenizer, max_length=9, chunks=rules)
    with pytest.raises(ConfigError, match="length=2: with special tokens a chunk takes 3 at least"):
        TokenStore.from_texts(TEXTS, tokenizer, max_length=2, chunks=ChunkRules(2, 4, True, False))


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("released", RELEASED),
        ("ours,length=64,count=2", ChunkRules(64, 2, True, False)),
        ("released, keep_empty=false", ChunkRules(512, 4, False, False)),
        ("none", None),
    ],
)
def test_rules_by_name(text: str, rules: ChunkRules | None) -> None:
    assert ChunkRules.parse(text) == rules
    assert ChunkRules.from_json(None if rules is None else rules.as_json()) == rules
    assert ChunkRules.parse("ours") == OURS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maxp", "chunks='maxp': begin with one of released, ours, or none"),
        ("ours,length=x", "'length=x' is not length=NUMBER"),
        ("ours,size=3", "'size=3' is not length=NUMBER"),
        ("ours,keep_empty=1", "'keep_empty=1' is not"),
        ("ours,count=0", "chunks: length=512, count=0: a chunk has at least 1 token"),
        ("ours,count=65536", "count=65536"),
    ],
)
def test_rules_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ChunkRules.parse(text)
