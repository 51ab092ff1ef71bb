from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from ance_fast.data.tokenize import (
    CalledEncoder,
    FastEncoder,
    text_encoder,
    token_dtype,
    tokenize,
    tokenizer_fingerprint,
)
from ance_fast.errors import ConfigError

TEXTS = ["", "the cat sat on the mat.", "dogs running", "the [SEP] cat [MASK]", "Ünïcödé 東京 \U0001f600", "a " * 50]


def rows(tokens: Any) -> list[list[int]]:
    return [piece.tolist() for piece in np.split(tokens.values, tokens.offsets[1:-1])]


def by_hand(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    return [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]


@pytest.mark.parametrize("max_length", [3, 8, 512])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("split", [False, True])
def test_tokens_are_exactly_what_the_tokenizer_gives(
    tokenizer: PreTrainedTokenizerFast, max_length: int, side: str, split: bool
) -> None:
    tokenizer.truncation_side = side
    tokenizer.split_special_tokens = split
    encoder = text_encoder(tokenizer, max_length)
    assert isinstance(encoder, FastEncoder)
    assert rows(tokenize(TEXTS, encoder, "uint16")) == by_hand(tokenizer, TEXTS, max_length)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8), st.integers(3, 20))
def test_odd_texts_are_tokenised_exactly_too(
    byte_level: PreTrainedTokenizerFast, texts: list[str], max_length: int
) -> None:
    tokens = tokenize(texts, text_encoder(byte_level, max_length), "uint16")
    assert rows(tokens) == by_hand(byte_level, texts, max_length)
    whole = [len(byte_level(text)["input_ids"]) for text in texts]
    assert tokens.truncated == sum(length > max_length for length in whole)


def test_the_callers_tokenizer_may_pad_and_the_tokens_do_not_change(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = by_hand(tokenizer, TEXTS, 8)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=5)
    assert rows(tokenize(TEXTS, text_encoder(tokenizer, 8), "uint16")) == expected


def test_long_texts_are_given_to_the_tokenizer_a_few_at_a_time(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ance_fast.data import tokenize as module

    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 100)
    sizes: list[int] = []
    texts = ["cat " * 30, "a", "b", "dog " * 30, "the " * 30]
    tokens = tokenize(iter(texts), text_encoder(tokenizer, 16), "uint16", lambda count, _: sizes.append(count))
    assert sizes == [1, 3, 1]
    assert rows(tokens) == by_hand(tokenizer, texts, 16)


@pytest.mark.timeout(60)
def test_a_passage_of_a_hundred_thousand_words_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize(["the cat", "the dog " * 50_000], text_encoder(tokenizer, 16), "uint16")
    assert rows(tokens) == by_hand(tokenizer, ["the cat", "the dog " * 20], 16)
    assert tokens.truncated == 1


def test_many_texts_are_done_in_batches_that_are_announced(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [f"the cat {number}" for number in range(2500)]
    done: list[tuple[int, int]] = []
    announce = lambda texts, tokens: done.append((texts, tokens))  # noqa: E731
    tokens = tokenize(texts, text_encoder(tokenizer, 16), "uint16", announce)
    assert np.sum(done, axis=0).tolist() == [2500, len(tokens.values)]
    assert len(done) > 1
    assert rows(tokens)[2400:] == by_hand(tokenizer, texts[2400:], 16)


def test_no_texts_have_no_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize([], text_encoder(tokenizer, 16), "uint16")
    assert tokens.values.dtype == np.uint16
    assert tokens.offsets.tolist() == [0]


def test_a_tokenizer_without_a_fast_form_is_called_and_can_be_sent_to_a_process() -> None:
    slow = ByT5Tokenizer()
    encoder = text_encoder(slow, 6)
    assert isinstance(encoder, CalledEncoder)
    sent = pickle.loads(pickle.dumps(encoder))
    texts = ["", "abcde", "abcdef"]
    tokens = tokenize(texts, sent, "uint16")
    assert rows(tokens) == by_hand(slow, texts, 6)
    assert tokens.truncated == 1


class Reversing(PreTrainedTokenizerFast):
    """A tokenizer that does something its serialised form does not know."""

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        turned = text[::-1] if isinstance(text, str) else [part[::-1] for part in text]
        return super().__call__(turned, *args, **kwargs)


def test_a_tokenizer_that_does_more_than_its_serialised_form_is_called_itself(
    byte_level: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    reversing = Reversing(tokenizer_object=byte_level.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    with caplog.at_level(logging.WARNING):
        encoder = text_encoder(reversing, 8)
    assert "called directly" in caplog.text
    assert rows(tokenize(["abc", "xyz"], encoder, "uint16")) == by_hand(reversing, ["abc", "xyz"], 8)


@pytest.mark.parametrize("max_length", [2, 0, -1, None, 8.0])
def test_a_limit_without_room_for_a_token_is_refused(tokenizer: PreTrainedTokenizerFast, max_length: Any) -> None:
    with pytest.raises(ConfigError, match="max_length must be an integer above 2"):
        text_encoder(tokenizer, max_length)


def test_an_id_that_does_not_fit_is_refused_rather_than_wrapped() -> None:
    class Large:
        def ids(self, texts: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
            return (([70_000], False) for _ in texts)

    with pytest.raises(ConfigError, match="token id 70000 does not fit uint16"):
        tokenize(["x"], Large(), "uint16")
    assert tokenize(["x"], Large(), "int32").values.tolist() == [70_000]


@pytest.mark.parametrize(("size", "expected"), [(30_522, "uint16"), (65_536, "uint16"), (65_537, "int32")])
def test_sixteen_bits_are_used_where_every_id_fits(size: int, expected: str) -> None:
    assert token_dtype(range(size)) == expected


def test_the_fingerprint_survives_use_and_saving(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=7)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_whatever_changes_the_tokens_changes_the_fingerprint(
    tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast, byte_level: PreTrainedTokenizerFast
) -> None:
    prints = [tokenizer_fingerprint(one) for one in (tokenizer, other_tokenizer, byte_level)]
    tokenizer.truncation_side = "left"
    prints.append(tokenizer_fingerprint(tokenizer))
    tokenizer.split_special_tokens = True
    prints.append(tokenizer_fingerprint(tokenizer))
    tokenizer.add_tokens(["catdog"])
    prints.append(tokenizer_fingerprint(tokenizer))
    assert len(set(prints)) == len(prints)


def test_a_slow_tokenizer_has_a_fingerprint_of_its_vocabulary() -> None:
    assert tokenizer_fingerprint(ByT5Tokenizer()) == tokenizer_fingerprint(ByT5Tokenizer())
    assert tokenizer_fingerprint(ByT5Tokenizer()) != tokenizer_fingerprint(ByT5Tokenizer(extra_ids=3))


def test_readers_and_workers_load_neither_torch_nor_transformers() -> None:
    code = "import sys, ance_fast.data; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
