from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer

from ance_fast.data import released_tokenizer
from ance_fast.data.text_rules import text_rules
from ance_fast.data.tokenize import FastEncoder, TextEncoder, text_encoder, tokenize, tokenizer_fingerprint
from ance_fast.errors import ArtifactError

FIRST = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz<>/.,![]'éσß東"
LINES = [*FIRST, *LETTERS, *(f"##{letter}" for letter in "abcdst\u0307"), "the", "cat"]
VOCAB = {token: number for number, token in enumerate(LINES)}
PARTS = [
    *FIRST,
    *("[sep]", "[Pad]", "<mask>", "<MASK>", " ", "\n", "\t", "\x1c", "\x85", "\u3000", "\u200b", "\0", "¿", "!", "'S"),
    *("THE", "the", " Cats", "cat", "É", "e\u0301", "\u0130", "\u03a3", "東京", "\u212a", "a" * 101, "2019"),
]
# About punctuation beyond ASCII versions of Unicode disagree.
ODD = st.characters(max_codepoint=0x2FFF, categories=["L", "M", "N", "Cc", "Cf", "Zs"]) | st.characters(codec="ascii")
TEXTS = st.lists(st.sampled_from(PARTS) | ODD, max_size=10).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seed")
    (path / "vocab.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def seed(folder: Path) -> Any:
    return released_tokenizer(folder, "seed")


@pytest.fixture(scope="module")
def encoders(seed: Any) -> Callable[[int], TextEncoder]:
    return functools.cache(lambda max_length: text_encoder(seed, max_length))


@pytest.fixture(scope="module")
def inner(folder: Path) -> BertWordPieceTokenizer:
    """The class that the released code calls, with its settings."""
    return BertWordPieceTokenizer(str(folder / "vocab.txt"), clean_text=False, strip_accents=False, lowercase=False)


def tokens_of(tokenizer: Any, text: str, max_length: int = 100) -> list[int]:
    ((ids, _),) = text_encoder(tokenizer, max_length).ids([text])
    return ids


def test_special_tokens_have_the_first_ids_and_mask_the_last(seed: Any) -> None:
    assert [seed.convert_tokens_to_ids(token) for token in FIRST] == [0, 1, 2, 3, 4]
    assert seed.convert_tokens_to_ids("<mask>") == len(LINES) == len(seed) - 1
    assert (seed.cls_token_id, seed.pad_token_id, seed.sep_token_id, seed.unk_token_id) == (0, 1, 2, 3)


def test_a_vocabulary_that_seed_saved_itself_names_mask_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*LINES, "<mask>"]) + "\n", encoding="utf-8")
    again = released_tokenizer(str(tmp_path / "vocab.txt"), "seed")
    assert (len(again), again.convert_tokens_to_ids("<mask>")) == (len(LINES) + 1, len(LINES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CAT", ["the", "cat"]),
        ("url [SEP] Cats[SEP]", ["[UNK]", "[SEP]", "cat", "##s", "[SEP]"]),
        ("[sep] [MASK]", ["[", "[UNK]", "]", "[", "[UNK]", "]"]),
        ("<mask>", ["<", "[UNK]", ">"]),
        ("É e\u0301 \u03a3 ß", ["é", "[UNK]", "\u03c3", "ß"]),
        ("東the\x00a b\x1cc", ["東", "[UNK]", "[UNK]"]),
    ],
)
def test_ids_are_those_of_the_released_tokenizer(seed: Any, text: str, expected: list[str]) -> None:
    assert tokens_of(seed, text) == [0, *(VOCAB[token] for token in expected), 2]


@settings(deadline=None, max_examples=120)
@given(text=TEXTS, max_length=st.sampled_from([3, 7, 60]))
def test_any_text_becomes_what_the_released_rules_say(
    encoders: Callable[[int], TextEncoder], inner: BertWordPieceTokenizer, text: str, max_length: int
) -> None:
    encoder = encoders(max_length)
    assert isinstance(encoder, FastEncoder)
    ((ids, cut),) = encoder.ids([text])
    expected = released_text.seed(text, VOCAB, max_length)
    assert ids == [one for one in expected if one != 1]
    assert cut == (len(released_text.seed(text, VOCAB, 10**6)) > max_length)
    lower = released_text.lower_but(released_text.SEED_SPECIAL, text)
    assert inner.encode(lower, add_special_tokens=True).ids[:max_length] == expected


def test_a_text_that_is_too_long_loses_its_end_token(seed: Any) -> None:
    encoder = text_encoder(seed, 4)
    tokens = tokenize(["the cat", "the cat the", "the cat the cat", ""], encoder, "uint16")
    the, cat = VOCAB["the"], VOCAB["cat"]
    rows = [row.tolist() for row in np.split(tokens.values, tokens.offsets[1:-1])]
    assert rows == [[0, the, cat, 2], [0, the, cat, the], [0, the, cat, the], [0, 2]]
    assert tokens.truncated == 2


def test_padding_spelt_out_counts_where_text_is_cut_and_is_then_left_out(seed: Any) -> None:
    assert tokens_of(seed, "[PAD]the[PAD] cat") == [0, VOCAB["the"], VOCAB["cat"], 2]
    assert tokens_of(seed, "[PAD]the[PAD] cat", 4) == [0, VOCAB["the"]]
    assert tokens_of(released_tokenizer(seed, "seed,leave_out_padding=false"), "[PAD]the")[1] == 1


def test_the_rules_are_saved_with_it(seed: Any, tmp_path: Path) -> None:
    seed.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(seed)
    for text in ("The [PAD] cat <mask> [SEP] cats", "the " * 40):
        assert tokens_of(loaded, text, 9) == tokens_of(seed, text, 9)
    assert (len(loaded), loaded.init_kwargs["text_preset"]) == (len(seed), "seed")
    assert tokenizer_fingerprint(released_tokenizer(loaded, "seed")) == tokenizer_fingerprint(seed)


def test_without_lower_casing_the_mask_token_can_be_spelt_out(folder: Path) -> None:
    cased = released_tokenizer(folder, "seed,lower_case=false")
    assert tokens_of(cased, "[MASK] the THE") == [0, 4, VOCAB["the"], 3, 2]
    assert text_rules("seed").lower_case  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "vocab.txt: no such file"),
        (b"[CLS]\n[PAD]\n\xff\n", "vocab.txt: not a vocabulary of one UTF-8 token a line"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", r"vocab.txt:1: .*\[CLS\] is 2 here"),
        (b"[CLS]\n[PAD]\n[SEP]\nthe\n", r"vocab.txt:4: .*\[UNK\] is missing here"),
        (b"", r"vocab.txt:1: .*\[CLS\] is missing here"),
    ],
)
def test_a_broken_vocabulary_is_refused_with_file_and_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        released_tokenizer(tmp_path, "seed")
