"""Long documents as several sequences: cut into chunks, of which the best one stands for the document (MaxP).

Dai and Callan, SIGIR 2019, scored passages of a document and kept the maximum; Xiong et al., ICLR 2021 (ANCE), train
and search so with chunks of 512 tokens. Tokens are cut, not text, so a document is tokenised once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from ance_fast.data.tokenize import Tokens
from ance_fast.errors import ConfigError

SEPARATOR = "#"
"""Chunk 3 of the document "D7" is the row "D7#3"."""


@dataclass(frozen=True)
class ChunkRules:
    """How a document becomes at most `count` chunks of at most `length` tokens.

    first_token: every chunk begins with the tokenizer's first tokens (`[CLS]`, `<s>`) and ends with its last, as a text
        of its own would. Otherwise the document is tokenised as one sequence and that is cut every `length` tokens, so
        that later chunks begin with whatever token stands there.
    keep_empty: every document has `count` chunks; those past its end have no tokens and are encoded as `length` padding
        tokens. Otherwise they do not exist.

    Raises `ConfigError` for numbers that cannot hold.
    """

    length: int
    count: int
    first_token: bool
    keep_empty: bool

    def __post_init__(self) -> None:
        if self.length < 1 or not 1 <= self.count < 1 << 16:
            raise ConfigError(
                f"chunks: length={self.length}, count={self.count}: a chunk has at least 1 token, a document 1 to "
                "65535 chunks"
            )

    @classmethod
    def parse(cls, text: str) -> ChunkRules | None:
        """A preset with changes after commas, "ours" or "released,length=256,count=8"; "none" is None.

        Raises `ConfigError` for anything else.
        """
        name, *changes = [part.strip() for part in text.split(",")]
        if text.strip() == "none":
            return None
        if name not in PRESETS:
            raise ConfigError(f"chunks={text!r}: begin with one of {', '.join(PRESETS)}, or none")
        known = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for change in changes:
            key, _, value = (part.strip() for part in change.partition("="))
            is_flag = known.get(key) == "bool"
            if key not in known or not (value in ("true", "false") if is_flag else value.isdecimal()):
                raise ConfigError(
                    f"chunks={text!r}: {change!r} is not length=NUMBER, count=NUMBER, first_token=true|false or "
                    "keep_empty=true|false"
                )
            values[key] = value == "true" if is_flag else int(value)
        return replace(PRESETS[name], **values)

    def as_json(self) -> dict[str, Any]:
        """The rules as plain values, for manifests."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> ChunkRules | None:
        """What `as_json` gave, None for None. Raises `TypeError` for other names."""
        return None if value is None else cls(**value)


RELEASED = ChunkRules(512, 4, first_token=False, keep_empty=True)
"""What microsoft/ANCE does: a sequence of 2,048 padded tokens, reshaped; chunks of nothing but padding are indexed."""
OURS = ChunkRules(512, 4, first_token=True, keep_empty=False)
PRESETS = {"released": RELEASED, "ours": OURS}


@dataclass(frozen=True)
class Chunker:
    """`rules` for one tokenizer, whose special tokens around a text are `prefix` and `suffix`; can be pickled.

    drops_end: texts that are cut lose their suffix, and so do chunks after which the text goes on.
    """

    rules: ChunkRules
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    drops_end: bool = False

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, rules: ChunkRules) -> Chunker:
        """Raises `ConfigError` if a chunk has no room beside the special tokens."""
        probe = tokenizer("a", return_special_tokens_mask=True)
        ids, special = list(probe["input_ids"]), list(probe["special_tokens_mask"])
        text = [place for place, flag in enumerate(special) if not flag] or [len(ids)]
        prefix, suffix = tuple(ids[: text[0]]), tuple(ids[text[-1] + 1 :])
        least = len(prefix) + len(suffix) + 1
        if rules.length < least:
            raise ConfigError(f"chunks: length={rules.length}: with special tokens a chunk takes {least} at least")
        drops_end = bool(getattr(tokenizer, "init_kwargs", {}).get("truncation_drops_end", False))
        return cls(rules, prefix, suffix, drops_end)

    @property
    def max_length(self) -> int:
        """Tokens at which a whole document is cut before it is split."""
        rules = self.rules
        if not rules.first_token:
            return rules.length * rules.count
        outside = len(self.prefix) if self.drops_end else len(self.prefix) + len(self.suffix)
        return rules.count * (rules.length - outside) + outside

    def split(self, tokens: Tokens) -> tuple[Tokens, np.ndarray]:
        """The chunks of documents tokenised at `max_length`, and how many each document has, int64 [documents].

        Takes the time of a copy of the tokens where chunks get special tokens, else that of their offsets.
        """
        if self.rules.first_token:
            return self._framed(tokens)
        sizes, counts = self._sizes(np.diff(tokens.offsets), self.rules.length)
        return Tokens(tokens.values, _offsets(sizes), tokens.truncated), counts

    def _framed(self, tokens: Tokens) -> tuple[Tokens, np.ndarray]:
        starts, ends = tokens.offsets[:-1], tokens.offsets[1:]
        before, after = len(self.prefix), len(self.suffix)
        inner = np.ones(len(tokens.values), dtype=np.bool_)
        for place in range(before):
            inner[starts + place] = False
        if self.drops_end:
            body = ends - starts - before
            room = self.rules.length - before
            # What the end tokens alone would make a chunk of is dropped with them, as truncation drops them.
            whole = np.ones(len(body), dtype=np.bool_)
            for place, token in enumerate(self.suffix):
                whole &= tokens.values[ends - after + place] == token
            over = (body - 1) % room + 1
            lonely = np.where(whole & (over <= after) & (body > room), over, 0)
            for place in range(after):
                inner[(ends - 1 - place)[lonely > place]] = False
            body, after = body - lonely, 0
        else:
            for place in range(after):
                inner[ends - 1 - place] = False
            body = ends - starts - before - after
            room = self.rules.length - before - after
        sizes, counts = self._sizes(body, room)
        # A document without text still has its special tokens; chunks past a document's end have none.
        first = np.cumsum(counts) - counts
        filled = sizes > 0
        filled[first] = True
        sizes = np.where(filled, sizes + before + after, 0)
        offsets = _offsets(sizes)
        values = np.empty(int(offsets[-1]), dtype=tokens.values.dtype)
        text = np.ones(len(values), dtype=np.bool_)
        for place, token in enumerate(self.prefix):
            at = offsets[:-1][filled] + place
            values[at], text[at] = token, False
        for place, token in enumerate(self.suffix[:after]):
            at = offsets[1:][filled] - after + place
            values[at], text[at] = token, False
        values[text] = tokens.values[inner]
        return Tokens(values, offsets, tokens.truncated), counts

    def _sizes(self, body: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each chunk and chunks of each document, for documents of `body` tokens in chunks of `room`."""
        filled = np.maximum(1, -(-body // room))
        counts = np.full(len(body), self.rules.count, dtype=np.int64) if self.rules.keep_empty else filled
        number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.clip(np.repeat(body, counts) - number * room, 0, room), counts


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
