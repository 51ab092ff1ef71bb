"""Which tokenizer an artifact's texts went through, so that queries of another are refused.

An encoder's fingerprint is of its weights: the same checkpoint with another `--text-preset` has the same one, and what
it makes of a query does not compare with an index made by other rules. Loading gives both towers of a pair one preset,
so the tokenizer of the documents tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ance_fast.data.tokenize import tokenizer_fingerprint
from ance_fast.errors import ArtifactError


class TextRecord(NamedTuple):
    """`tokenizer_fingerprint` of documents' tokenizer, and the preset of its rules, None for its own."""

    tokenizer: str
    preset: str | None


def text_record(tokenizer: Any) -> TextRecord:
    """The record of a tokenizer."""
    return TextRecord(tokenizer_fingerprint(tokenizer), text_preset_of(tokenizer))


def text_preset_of(tokenizer: Any) -> str | None:
    """The preset whose rules a tokenizer has (`data.text_rules`), None for its own."""
    preset = getattr(tokenizer, "init_kwargs", {}).get("text_preset")
    return None if preset is None else str(preset)


def check_text_record(where: Path, recorded: TextRecord | None, tokenizer: Any) -> None:
    """Raise `ArtifactError` where `tokenizer`, of the documents of the encoder in use, is not what is recorded.

    None, of either, is not checked: artifacts of earlier releases record nothing.
    """
    if recorded is None or tokenizer is None:
        return
    used = text_record(tokenizer)
    if used.tokenizer != recorded.tokenizer:
        option = "leave --text-preset out" if recorded.preset is None else f"say --text-preset {recorded.preset}"
        if recorded.preset == used.preset:
            option = "take the checkpoint with the same tokenizer"
        raise ArtifactError(
            f"{where}: its texts became tokens by {_named(recorded)}, this encoder has {_named(used)}; queries and "
            f"texts have to be cut alike: {option}, as when it was made, or make it again"
        )


def _named(record: TextRecord) -> str:
    rules = "the checkpoint's own rules" if record.preset is None else f"the text preset {record.preset!r}"
    return f"{rules} (tokenizer {record.tokenizer[:12]})"
