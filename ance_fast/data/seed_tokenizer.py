"""SEED-Encoder's tokenizer: WordPiece over its own `vocab.txt`, between lower-casing and BERT's splitting.

As `SEEDTokenizer` of microsoft/ANCE has it: a `BertWordPieceTokenizer` that neither cleans text nor strips accents; ids
are numbers of lines from 0; `[CLS]`, `[PAD]`, `[SEP]` and `[UNK]` spelt out in a text are special tokens, `<mask>`
never is, `[MASK]` only where text is not lower-cased. `<mask>`, the last id, has a row in the model's embedding table
and no line in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ance_fast.errors import ArtifactError, ConfigError

_FIRST = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
_MASK = "<mask>"


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a `vocab.txt`, or of the one in a folder; `ArtifactError` for no such file or another model's."""
    from tokenizers.models import WordPiece

    file = path / "vocab.txt" if path.is_dir() else path
    if not file.is_file():
        raise ArtifactError(f"{file}: no such file; SEED-Encoder's tokenizer is made from its vocab.txt")
    try:
        vocabulary: dict[str, int] = WordPiece.read_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise ArtifactError(f"{file}: not a vocabulary of one UTF-8 token a line ({error})") from error
    problem = _problem(vocabulary)
    if problem is not None:
        raise ArtifactError(f"{file}:{problem[0] + 1}: {problem[1]}")
    return vocabulary


def seed_backend(vocabulary: dict[str, int], lower_case: bool) -> Any:
    """A `tokenizers.Tokenizer` over token -> id. `ConfigError` where that is not a vocabulary of SEED-Encoder."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    problem = _problem(vocabulary)
    if problem is not None:
        raise ConfigError(f"text_preset='seed': {problem[1]}")
    # Text never reaches the word `<mask>`: the splitting takes it apart.
    vocabulary = {_MASK: max(vocabulary.values()) + 1, **vocabulary}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    split = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), split]) if lower_case else split
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The released lower-casing spares the other four.
    special = _FIRST[:4] if lower_case else _FIRST
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return backend


def _problem(vocabulary: dict[str, int]) -> tuple[int, str] | None:
    """The first of the five ids that is another token's, and what is wrong."""
    for number, token in enumerate(_FIRST):
        if vocabulary.get(token) != number:
            found = f"is {vocabulary[token]}" if token in vocabulary else "is missing"
            return number, (
                f"SEED-Encoder's vocabulary begins with {' '.join(_FIRST)} as 0 to 4; {token} {found} here, so this is "
                "another model's"
            )
    return None
