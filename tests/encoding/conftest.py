"""What there is to encode: random words without a model, and real passages with an encoder of small random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ance_fast import Encoder, TokenStore
from ance_fast.data import load_corpus

WORDS = [f"w{number}" for number in range(50)]


@pytest.fixture(scope="session")
def word_store() -> Callable[..., TokenStore]:
    """`word_store(100)`: 100 passages of 1 to 9 random words; the first 50 are those of `word_store(50)`."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")

    def make(rows: int, changed: int | None = None, prefix: str = "doc") -> TokenStore:
        random = np.random.default_rng(0)
        texts = [" ".join(random.choice(WORDS, random.integers(1, 10))) for _ in range(rows)]
        if changed is not None:
            texts[changed] = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"
        return TokenStore.from_texts(texts, tokenizer, ids=[f"{prefix}-{row}" for row in range(rows)], max_length=16)

    return make


@pytest.fixture(scope="module")
def encoder(tiny: Callable[..., Path]) -> Encoder:
    return Encoder.load(str(tiny("Bert")), max_document_length=32)


@pytest.fixture
def store(encoder: Encoder, wiki: Path, tmp_path: Path) -> TokenStore:
    """400 real passages."""
    return TokenStore.build(load_corpus(str(wiki)), encoder.tokenizer, tmp_path / "tokens", max_length=32)
