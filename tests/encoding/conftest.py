"""An encoder with small random weights and a tokenised corpus of 400 real passages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ance_fast import Encoder, TokenStore
from ance_fast.data import load_corpus


@pytest.fixture(scope="module")
def encoder(tiny: Callable[..., Path]) -> Encoder:
    return Encoder.load(str(tiny("Bert")), max_document_length=32)


@pytest.fixture
def store(encoder: Encoder, wiki: Path, tmp_path: Path) -> TokenStore:
    return TokenStore.build(load_corpus(str(wiki)), encoder.tokenizer, tmp_path / "tokens", max_length=32)
