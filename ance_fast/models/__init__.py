"""Encoders: checkpoints in, embeddings out. `Encoder` loads torch, so it is imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ance_fast.models.encoder import Encoder

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    if name != "Encoder":
        raise AttributeError(f"module 'ance_fast.models' has no attribute {name!r}")
    from ance_fast.models.encoder import Encoder

    return Encoder
