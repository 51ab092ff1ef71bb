"""Documents in chunks, as commands are told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ance_fast import Encoder, TokenStore
from ance_fast.cli.chunking import cut_documents, refuse_unknown_chunks
from ance_fast.cli.commands.mine import _refuse_chunks
from ance_fast.data import ChunkRules
from ance_fast.encoding import encode_corpus
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.index import Index


@pytest.fixture(scope="module")
def encoder(tiny: Any) -> Encoder:
    return Encoder.load(str(tiny("Bert", num_hidden_layers=1)), device="cpu")


def test_rules_that_nobody_knows_or_another_length_beside_them_are_refused() -> None:
    for allowed in (None, "none", "ours", "released,length=8"):
        refuse_unknown_chunks(allowed)
    refuse_unknown_chunks("none", 8)
    refuse_unknown_chunks(None, 8)
    with pytest.raises(ConfigError, match="chunks='x': begin with one of released, ours"):
        refuse_unknown_chunks("x")
    with pytest.raises(ConfigError, match="--chunks ours says how long chunks are; leave the maximum length"):
        refuse_unknown_chunks("ours", 8)
    _refuse_chunks(False)
    with pytest.raises(ConfigError, match="passages are chunks of documents here"):
        _refuse_chunks(True)


def test_a_store_says_how_its_documents_are_cut_unless_the_user_does(encoder: Encoder, tmp_path: Path) -> None:
    rules = ChunkRules(8, 2, first_token=True, keep_empty=False)
    texts = ["one two three four five six seven eight nine", "ten"]
    store = TokenStore.from_texts(texts, encoder.tokenizer, ids=["a", "b"], max_length=8, chunks=rules)
    with pytest.raises(ArtifactError, match=r"documents are cut by ChunkRules\(length=8, .*, this encoder's by None"):
        encode_corpus(encoder, store, tmp_path / "e")
    cut_documents(encoder, None, store)
    assert encoder.chunks == rules
    shards = encode_corpus(encoder, store, tmp_path / "e")
    assert (list(shards.ids), shards.document_separator) == (["a#0", "a#1", "b#0"], "#")
    found = Index.build(shards, device="cpu").search_documents(shards.read([1]), 3)
    assert sorted(found.ids[0]) == ["a", "b"]
    cut_documents(encoder, "none", store)
    assert encoder.chunks is None
    cut_documents(encoder, "ours,length=16")
    assert encoder.chunks == ChunkRules(16, 4, first_token=True, keep_empty=False)
    cut_documents(encoder, None, ["texts"])
    assert encoder.max_document_length == 16
    with pytest.raises(ConfigError, match="max_document_length=8: documents are cut into chunks of 16 tokens"):
        cut_documents(encoder, None, max_length=8)
    cut_documents(encoder, "none", max_length=8)
    assert (encoder.chunks, encoder.max_document_length) == (None, 8)
    cut_documents(encoder, "none", max_length=10_000)
    assert encoder.max_document_length == encoder.layout.max_seq_length
    plain = TokenStore.from_texts(texts, encoder.tokenizer, max_length=16)
    cut_documents(encoder, None, plain)
    assert encoder.chunks is None
