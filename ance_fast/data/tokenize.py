"""Tokenising many texts, in any process, to exactly what `tokenizer(text, truncation=True, max_length=...)` gives.

A fast tokenizer travels between processes as its serialised JSON and runs in the `tokenizers` library alone, so that a
worker process imports neither torch nor transformers. Others are pickled whole and called. Rules about ids that a call
of the tokenizer does not know are kept in its `init_kwargs` (`ance_fast.data.text_rules`) and hold here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from ance_fast.errors import ConfigError

logger = logging.getLogger(__name__)

# Texts given to the tokenizer at once, and characters at which fewer are: a text is cut only after all of it was
# tokenised, which takes many times its size.
_BATCH = 1024
_BATCH_CHARACTERS = 1 << 20
_PROBES = ("", "a", "The quick brown fox, 42 jumps!", "  Ünïcödé\t東京 \U0001f600 ", "one two three " * 400)


class Tokens(NamedTuple):
    """Token ids of n texts: `values` [tokens] of the requested dtype, `offsets` int64 [n + 1], texts that were cut."""

    values: np.ndarray
    offsets: np.ndarray
    truncated: int


class TextEncoder(Protocol):
    """Turns a few texts into token ids; can be pickled."""

    def ids(self, texts: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
        """(Token ids with special tokens, whether the text was cut) of each text."""


@dataclass(frozen=True)
class IdRules:
    """What is done to the ids of a whole text: `ends` False cuts the end token off with the rest (`ids[:max_length]`),
    `left_out` is the id of a padding token that takes no place."""

    ends: bool = True
    left_out: int | None = None

    def cut(self, ids: list[int], max_length: int) -> list[int]:
        """The ids that are kept of a text with special tokens, or of more of it than `max_length`."""
        ids = ids[:max_length]
        return ids if self.left_out not in ids else [one for one in ids if one != self.left_out]


@dataclass(frozen=True)
class FastEncoder:
    """A `tokenizers.Tokenizer` as its JSON, with the settings that the JSON does not carry."""

    serialised: str
    max_length: int
    direction: str
    encode_special_tokens: bool
    rules: IdRules = IdRules()

    def ids(self, texts: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
        """(Token ids with special tokens, whether the text was cut) of each text."""
        for encoding in _backend(self).encode_batch_fast(list(texts)):
            ids = encoding.ids
            cut = len(ids) >= self.max_length and (len(ids) > self.max_length or bool(encoding.overflowing))
            yield self.rules.cut(ids, self.max_length), cut


@dataclass(frozen=True)
class CalledEncoder:
    """Any other tokenizer: called as a user would call it."""

    tokenizer: Any
    max_length: int
    rules: IdRules = IdRules()

    def ids(self, texts: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
        """(Token ids with special tokens, whether the text was cut) of each text."""
        if not self.rules.ends:
            for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]:
                yield self.rules.cut(list(ids), self.max_length), len(ids) > self.max_length
            return
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        for text, ids in zip(texts, rows, strict=True):
            # Only a text that fills the limit can have been cut, so few are tokenised twice.
            cut = len(ids) == self.max_length and self._whole_length(text) > len(ids)
            yield self.rules.cut(list(ids), self.max_length), cut

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The same token ids, without looking whether texts were cut: that takes a second call of some tokenizers."""
        cut = {"truncation": True, "max_length": self.max_length} if self.rules.ends else {"verbose": False}
        rows = self.tokenizer(list(texts), **cut)["input_ids"]
        return [self.rules.cut(list(ids), self.max_length) for ids in rows]

    def _whole_length(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])


@lru_cache(maxsize=4)
def _backend(encoder: FastEncoder) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(encoder.serialised)
    backend.no_padding()
    # With room for the special tokens the end token of a long text comes after the place where it is cut.
    room = 0 if encoder.rules.ends else backend.num_special_tokens_to_add(False)
    backend.enable_truncation(
        encoder.max_length + room, stride=0, strategy="longest_first", direction=encoder.direction
    )
    backend.encode_special_tokens = encoder.encode_special_tokens
    return backend


def text_encoder(tokenizer: Any, max_length: int) -> TextEncoder:
    """The fastest encoder that gives exactly the ids of `tokenizer(text, truncation=True, max_length=max_length)`.

    Where `tokenizer.init_kwargs` says `truncation_drops_end`, a text that is too long has no end token; where it says
    `padding_left_out`, padding tokens that a text spells out are left out after it was cut.

    Raises `ConfigError` if `max_length` leaves no room beside the special tokens.
    """
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if not isinstance(max_length, int) or max_length <= special:
        raise ConfigError(
            f"max_length must be an integer above {special}, the number of special tokens, not {max_length}"
        )
    rules = _id_rules(tokenizer)
    called = CalledEncoder(tokenizer, max_length, rules)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return called
    fast = FastEncoder(
        serialised=_serialised(backend),
        max_length=max_length,
        direction=getattr(tokenizer, "truncation_side", "right"),
        encode_special_tokens=bool(getattr(tokenizer, "split_special_tokens", False)),
        rules=rules,
    )
    # A subclass may do more in Python than its serialised form says.
    if [ids for ids, _ in fast.ids(_PROBES)] != called.rows(_PROBES):
        logger.warning("%s differs from its serialised form: it is called directly, slower", type(tokenizer).__name__)
        return called
    return fast


def _id_rules(tokenizer: Any) -> IdRules:
    said = getattr(tokenizer, "init_kwargs", {})
    drops_end = bool(said.get("truncation_drops_end"))
    side = getattr(tokenizer, "truncation_side", "right")
    if drops_end and side != "right":
        raise ConfigError(f"truncation_drops_end goes with truncation_side='right', not {side!r}")
    return IdRules(ends=not drops_end, left_out=tokenizer.pad_token_id if said.get("padding_left_out") else None)


def tokenize(
    texts: Iterable[str], encoder: TextEncoder, dtype: str, advance: Callable[[int, int], None] | None = None
) -> Tokens:
    """Tokenise texts, read as they are needed; `advance(n, t)` is called whenever n more are done, with t tokens.

    Raises `ConfigError` if an id does not fit `dtype`.
    """
    lengths = array("q", [0])
    pieces: list[np.ndarray] = []
    truncated = 0
    limit = np.iinfo(dtype).max
    for batch in _text_batches(texts):
        flat: list[int] = []
        for ids, cut in encoder.ids(batch):
            flat += ids
            lengths.append(len(ids))
            truncated += cut
        piece = np.array(flat, dtype=np.int64)
        if len(piece) and (piece.max() > limit or piece.min() < 0):
            raise ConfigError(
                f"token id {piece.max()} does not fit {dtype}: the tokenizer's len() is smaller than its ids"
            )
        pieces.append(piece.astype(dtype))
        if advance:
            advance(len(batch), len(piece))
    values = np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)
    return Tokens(values, np.cumsum(np.array(lengths, dtype=np.int64)), truncated)


def _text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def token_dtype(tokenizer: Any) -> str:
    """`uint16` where every id fits, else `int32`."""
    return "uint16" if len(tokenizer) <= 1 << 16 else "int32"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """BLAKE2b (128 bits, hex) of what decides a tokenizer's output.

    For a fast tokenizer: its serialised JSON without truncation and padding, which every call may change. For others:
    class, vocabulary and special tokens. Rules about ids count where there are any. Equal before and after
    `save_pretrained`.
    """
    side = getattr(tokenizer, "truncation_side", "right")
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = getattr(tokenizer, "init_kwargs", {})
    rules = tuple(name for name in ("truncation_drops_end", "padding_left_out") if said.get(name))
    if backend is not None:
        return _fast_fingerprint(backend.to_str(), side, split, rules)
    special = {name: str(value) for name, value in getattr(tokenizer, "special_tokens_map", {}).items()}
    body = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab(), "special": special}
    return _digest([body, side, split, *rules])


# What is parsed here has a megabyte for a vocabulary of 30,000, and every store, index and run asks again.
@lru_cache(maxsize=8)
def _fast_fingerprint(state: str, side: str, split: bool, rules: tuple[str, ...]) -> str:
    return _digest([_without_lengths(state), side, split, *rules])


def _digest(value: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode("utf-8"), digest_size=16).hexdigest()


def _serialised(backend: Any) -> str:
    return _serialised_state(backend.to_str())


@lru_cache(maxsize=8)
def _serialised_state(state: str) -> str:
    return json.dumps(_without_lengths(state), ensure_ascii=False)


def _without_lengths(state: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(state)
    return {**parsed, "truncation": None, "padding": None}
