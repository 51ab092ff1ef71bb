"""How commands cut documents into chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ance_fast.errors import ConfigError

if TYPE_CHECKING:
    from ance_fast.models import Encoder


def refuse_unknown_chunks(chunks: str | None, max_length: int | None = None) -> None:
    """Raise `ConfigError` for rules that are not known, or beside another maximum length. None: not given."""
    from ance_fast.data.chunks import ChunkRules

    if chunks is not None and ChunkRules.parse(chunks) is not None and max_length is not None:
        raise ConfigError(f"--chunks {chunks} says how long chunks are; leave the maximum length of passages out")


def cut_documents(encoder: Encoder, chunks: str | None, passages: object = None, max_length: int | None = None) -> None:
    """Have the encoder's documents cut as `chunks` says, or where that is None as those of a token store are; then at
    `max_length` tokens, or as many as the model takes.

    Raises `ConfigError` for chunks of another length.
    """
    from ance_fast.data import TokenStore
    from ance_fast.data.chunks import ChunkRules

    if chunks is not None:
        encoder.set_chunks(ChunkRules.parse(chunks))
    elif isinstance(passages, TokenStore):
        encoder.set_chunks(passages.chunks)
    if max_length is not None:
        encoder.set_lengths(max_document_length=min(max_length, encoder.layout.max_seq_length or max_length))
