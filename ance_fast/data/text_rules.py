"""What the released code does to a text before it is cut into tokens, as settings of a fast tokenizer.

microsoft/ANCE ran on transformers 2.3.0, whose tokenizers lower-case text in Python for every model, take the blanks
away around special tokens and put none before the first word. SEED-Encoder lower-cases too, and cuts the end token off
with the rest of a text that is too long. A checkpoint trained on such tokens is worth less on others. The rules are
kept in the tokenizer itself, so that they are saved with it and hold wherever it goes: what happens to the text in its
serialised form (`tokenizer.json`), what happens to the ids in its `init_kwargs`, which `ance_fast.data.tokenize` obeys.

Classes of characters are those of the `tokenizers` library: for every character of Unicode 14 they are Python's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ance_fast.errors import ConfigError

# What str.strip() takes away. The tokenizers library's own Strip does not count \x1c to \x1f.
_BLANK = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TextRules:
    """How text becomes tokens, beside the vocabulary; `kind` says whose tokenizers the rules are for.

    - `lower_case`: each character by itself is made lower case (capital sigma at the end of a word too), before special
      tokens are looked for, so that `</S>` becomes the token `</s>`; a special token spelt exactly is spared.
    - `strip`: blanks around special tokens and at both ends of a text are taken away.
    - `prefix_space`: a blank is put before each piece of text that begins with none (transformers: `add_prefix_space`).
    - `special_tokens`: `</s>` in a text is the special token, not four characters.
    - `drop_end`: truncation cuts the end token off with the rest of the text.
    - `leave_out_padding`: the padding token, spelt out in a text, takes no place in the sequence.
    """

    kind: str
    lower_case: bool = False
    strip: bool = False
    prefix_space: bool = False
    special_tokens: bool = True
    drop_end: bool = False
    leave_out_padding: bool = False


PRESETS: dict[str, TextRules | None] = {
    "ance": TextRules("byte-level BPE", lower_case=True, strip=True),
    "ance-cased": TextRules("byte-level BPE", strip=True),
    "seed": TextRules("SEED-Encoder", lower_case=True, drop_end=True, leave_out_padding=True),
    "dpr": TextRules("WordPiece", lower_case=True),
    "plain": None,
}


def text_rules(preset: str) -> TextRules | None:
    """The rules of a preset with changes, "ance" or "ance,strip=false"; None for "plain". `ConfigError` otherwise."""
    name, *changes = [part.strip() for part in preset.split(",")]
    if name not in PRESETS:
        raise ConfigError(
            f"text_preset={preset!r}: begin with one of {', '.join(PRESETS)}, then NAME=VALUE after commas"
        )
    rules = PRESETS[name]
    if rules is None:
        if changes:
            raise ConfigError(f"text_preset={preset!r}: plain leaves the tokenizer as it is and takes no changes")
        return None
    known = [field.name for field in fields(TextRules) if field.name != "kind"]
    values: dict[str, bool] = {}
    for change in changes:
        key, _, value = (part.strip() for part in change.partition("="))
        if key not in known or value.lower() not in ("true", "false"):
            raise ConfigError(
                f"text_preset={preset!r}: {change!r} is not NAME=true or NAME=false with {', '.join(known)}"
            )
        values[key] = value.lower() == "true"
    changed = replace(rules, **values)  # type: ignore[arg-type]
    for key in ("strip", "prefix_space"):
        if getattr(changed, key) and changed.kind != "byte-level BPE":
            raise ConfigError(f"text_preset={preset!r}: {key} is for byte-level BPE; {changed.kind} ignores blanks")
    return changed


def released_tokenizer(tokenizer: Any, preset: str) -> Any:
    """A copy of `tokenizer` that follows the rules of a preset, as a `PreTrainedTokenizerFast`; "plain" gives it back.

    `tokenizer` is one of transformers' with a fast form; for "seed" it may be a path: SEED-Encoder's `vocab.txt`, or
    the folder of that file. Ids are those of the released code: "ance" and "ance-cased" of transformers 2.3.0's
    `RobertaTokenizer` with and without `do_lower_case`, "seed" of microsoft/ANCE's `SEEDTokenizer.encode`; "dpr" is
    BERT uncased as the fast tokenizer has it. Changes come after commas: "ance,strip=false" (fields of `TextRules`).

    Raises `ConfigError` for an unknown preset or a tokenizer of another kind, `ArtifactError` for a broken `vocab.txt`.
    """
    from ance_fast.data.seed_tokenizer import read_vocabulary, seed_backend

    rules = text_rules(preset)
    settings: dict[str, Any] = {"text_preset": preset}
    if rules is not None and rules.drop_end:
        settings |= {"truncation_drops_end": True, "truncation_side": "right"}
    if rules is not None and rules.leave_out_padding:
        settings["padding_left_out"] = True
    if rules is not None and not rules.special_tokens:
        settings["split_special_tokens"] = True
    if isinstance(tokenizer, str | Path):
        if rules is None or rules.kind != "SEED-Encoder":
            raise ConfigError(
                f"text_preset={preset!r}: only SEED-Encoder's is made from a path; load {tokenizer} first"
            )
        return _seed(seed_backend(read_vocabulary(Path(tokenizer)), rules.lower_case), settings)
    if rules is None:
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"text_preset={preset!r}: {type(tokenizer).__name__} has no fast form (tokenizer.json)")
    state = json.loads(backend.to_str())
    kind = state["model"]["type"]
    if kind == "BPE" and (state["pre_tokenizer"] or {}).get("type") == "ByteLevel":
        kind = "byte-level BPE"
    saved = str(getattr(tokenizer, "init_kwargs", {}).get("text_preset"))
    if rules.kind != "SEED-Encoder" and saved.startswith("seed"):
        kind = "SEED-Encoder"
    if rules.kind == "SEED-Encoder" and kind == "WordPiece":
        return _seed(seed_backend(state["model"]["vocab"], rules.lower_case), settings)
    if rules.kind != kind:
        raise ConfigError(f"text_preset={preset!r} is for {rules.kind}; {type(tokenizer).__name__} is {kind}")
    if kind == "WordPiece":
        return generic_tokenizer(tokenizer, _bert(state, rules), **settings)
    return generic_tokenizer(tokenizer, _byte_level(state, rules), **settings)


def generic_tokenizer(tokenizer: Any, backend: Any, **settings: Any) -> Any:
    """A `PreTrainedTokenizerFast` over `backend` (a `tokenizers.Tokenizer`), with the names and lengths of `tokenizer`.

    A `RobertaTokenizer` or `BertTokenizer` whose backend was changed makes itself anew from its vocabulary when it is
    loaded again, and forgets the change; this class keeps what `tokenizer.json` says. `settings` go to `init_kwargs`.
    """
    from transformers import PreTrainedTokenizerFast

    kept: dict[str, Any] = {
        name: str(token) for name in _NAMED if (token := getattr(tokenizer, name, None)) is not None
    }
    for name in ("model_max_length", "model_input_names", "padding_side", "truncation_side", "extra_special_tokens"):
        kept[name] = getattr(tokenizer, name)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**kept, **settings})


def lower_cased(tokenizer: Any) -> Any:
    """A copy that lower-cases text first, which is what `do_lower_case` beside a cased tokenizer asks for."""
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Lowercase, Sequence

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer is not None else [])])
    return generic_tokenizer(tokenizer, backend)


def _byte_level(state: dict[str, Any], rules: TextRules) -> Any:
    from tokenizers import Regex, Tokenizer, normalizers

    found = []  # special tokens that are looked for in the normalised text
    for token in state["added_tokens"]:
        text = token["content"]
        lower = "".join(letter.lower() for letter in text)
        # A token with capitals can only be met before lower-casing, and must be, for it is spared.
        token |= {"normalized": text == lower or not rules.lower_case, "lstrip": False, "rstrip": False}
        if token["normalized"] and rules.special_tokens:
            found.append(re.escape(text))
    state["pre_tokenizer"]["add_prefix_space"] = rules.prefix_space
    state |= {"truncation": None, "padding": None}
    backend = Tokenizer.from_str(json.dumps(state))
    steps: list[Any] = [normalizers.Lowercase()] if rules.lower_case else []
    if rules.strip:
        before = "|".join(["\\z", *(f"(?={token})" for token in found)])
        after = "|".join(["\\A", *(f"(?<={token})" for token in found)])
        # Looking behind, and never giving back, keeps long runs of blanks linear.
        steps.append(normalizers.Replace(Regex(f"(?<!{_BLANK}){_BLANK}++(?:{before})|(?:{after}){_BLANK}++"), ""))
    backend.normalizer = normalizers.Sequence(steps) if steps else None
    return backend


def _bert(state: dict[str, Any], rules: TextRules) -> Any:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers

    for token in state["added_tokens"]:
        token |= {"normalized": False, "lstrip": False, "rstrip": False}
    backend = Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
    backend.normalizer = normalizers.BertNormalizer(lowercase=rules.lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _seed(backend: Any, settings: dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast

    # No mask_token: what is named becomes a special token, and `<mask>` in a text is none in the released code.
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, model_input_names=inputs, **names, **settings
    )
