"""What the released code does to text, said in plain Python: the oracle of the tests of `text_rules`."""

from __future__ import annotations

import itertools
import re

import regex

GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SEED_SPECIAL = ["[CLS]", "[PAD]", "[UNK]", "[SEP]"]


def lower_but(special: list[str], text: str) -> str:
    """Each character in lower case by itself, special tokens as they are."""
    pattern = "(" + "|".join(map(re.escape, special)) + ")|(.|\n)"
    return re.sub(pattern, lambda match: match[1] or match[2].lower(), text)


def byte_symbols() -> list[str]:
    """GPT-2's printable character of each byte."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def roberta(text: str, vocab: dict[str, int], merges: list[tuple[str, str]], lower: bool, max_length: int) -> list[int]:
    """`RobertaTokenizer.encode(text, max_length=...)` of transformers 2.3.0."""
    if lower:
        text = lower_but(ROBERTA_SPECIAL, text)
    ids: list[int] = []
    for piece in re.split("(" + "|".join(ROBERTA_SPECIAL) + ")", text):
        if piece in ROBERTA_SPECIAL:
            ids.append(vocab[piece])
            continue
        for word in GPT2_WORDS.findall(piece.strip()):
            ids += [vocab[part] for part in merged([byte_symbols()[byte] for byte in word.encode()], merges)]
    return [vocab["<s>"], *ids[: max_length - 2], vocab["</s>"]]


def merged(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte pair encoding: the earliest rule that fits is applied everywhere, from the left, until none fits."""
    while True:
        pairs = set(itertools.pairwise(parts))
        rule = next((rule for rule in merges if rule in pairs), None)
        if rule is None:
            return parts
        joined: list[str] = []
        for part in parts:
            # A part that was just joined takes no part in the same round again.
            if joined and (joined[-1], part) == rule:
                joined[-1:] = ["".join(rule) + "\0"]
            else:
                joined.append(part)
        parts = [part.removesuffix("\0") for part in joined]


def seed(text: str, vocab: dict[str, int], max_length: int) -> list[int]:
    """`SEEDTokenizer.encode(text, max_length=...)` of microsoft/ANCE, with `do_lower_case`."""
    words: list[str] = []
    for piece in re.split("(" + "|".join(map(re.escape, SEED_SPECIAL)) + ")", lower_but(SEED_SPECIAL, text)):
        words += [piece] if piece in SEED_SPECIAL else bert_words(piece)
    ids = [one for word in words for one in word_pieces(word, vocab)]
    return [vocab["[CLS]"], *ids, vocab["[SEP]"]][:max_length]


def bert_words(text: str) -> list[str]:
    """Words between blanks; punctuation and Chinese characters are words of their own."""
    spaced = []
    for letter in text:
        alone = letter in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¿" or "\u4e00" <= letter <= "\u9fff"
        spaced.append(f" {letter} " if alone else letter)
    # Not \x1c to \x1f, which Unicode does not count among the blanks.
    blanks = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
    return [word for word in re.split(blanks, "".join(spaced)) if word]


def word_pieces(word: str, vocab: dict[str, int]) -> list[int]:
    """The longest pieces from the left."""
    if word in SEED_SPECIAL:
        return [vocab[word]]
    ids: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        end = next((end for end in range(len(word), start, -1) if mark + word[start:end] in vocab), None)
        if end is None or len(word) > 100:
            return [vocab["[UNK]"]]
        ids.append(vocab[mark + word[start:end]])
        start = end
    return ids
