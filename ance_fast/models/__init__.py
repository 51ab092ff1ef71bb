"""Encoders: checkpoints in, embeddings out."""

from ance_fast.models.encoder import Encoder

__all__ = ["Encoder"]
