"""How many attention heads a checkpoint has whose weights do not show it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ance_fast.errors import ConfigError

logger = logging.getLogger(__name__)

# Of BERT, RoBERTa and SEED-Encoder in every published size.
HEAD_WIDTH = 64


def attention_heads(said: object, hidden: int, where: Path) -> int:
    """The attention heads of `hidden` dimensions: as many as are `said`; None: of 64 dimensions each, with a warning.

    Raises `ConfigError` for a number that cannot be, and where it has to be said.
    """
    if said is None:
        if hidden % HEAD_WIDTH:
            raise ConfigError(
                f"{where}: does not say how many attention heads {hidden} dimensions have; say it (--heads)"
            )
        logger.warning(
            "%s: does not say how many attention heads its %d dimensions have; %d are assumed (--heads)",
            *(where, hidden, hidden // HEAD_WIDTH),
        )
        return hidden // HEAD_WIDTH
    if not isinstance(said, int) or said < 1 or hidden % said:
        raise ConfigError(f"{where}: {hidden} dimensions cannot have {said!r} attention heads")
    return said


def refuse_unsaid_heads(config: Any, form: str) -> None:
    """Raise `ConfigError` for heads that whoever reads a format without their number would take for others."""
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    if hidden % HEAD_WIDTH == 0 and heads != hidden // HEAD_WIDTH:
        raise ConfigError(
            f"{form} does not hold the number of attention heads: {hidden} dimensions would be read as "
            f"{hidden // HEAD_WIDTH} heads, this encoder has {heads}; write another format"
        )
