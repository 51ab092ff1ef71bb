"""What every reader of another program's checkpoint needs beside weights: options, configuration, tokenizer, notes.

A folder with `tokenizer.json` says all its rules itself. One with vocabulary files alone, as microsoft/ANCE and
SEED-Encoder published them, says too little: the rules that its texts were tokenised by were in the programs. It gets
the rules of its format (`docs/tokenisation.md`), unless others are asked for.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ance_fast.data.text_rules import released_tokenizer, text_rules
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.backbone import PackedBackbone, freeze_unused
from ance_fast.models.encoder import Encoder
from ance_fast.models.layouts import CheckpointLayout, HeadModule, noted_chunks, read_notes

# What of a layout a checkpoint of another program has no place for.
NOTES = ("pooling", "max_seq_length", "max_query_length", "max_document_length")


@dataclass(frozen=True)
class ReadOptions:
    """How a checkpoint is read.

    trust: unpickle what may run code. tokenizer: a folder, or a vocabulary file, for a checkpoint that has none of its
    own. text_preset: rules of tokenisation (`ance_fast.data.text_rules`); None: those of the format. heads: attention
    heads, which files of fairseq do not always say; None: heads of 64.
    """

    trust: bool = False
    tokenizer: Path | None = None
    text_preset: str | None = None
    heads: int | None = None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of `folder`. Raises `ArtifactError` if it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing, so the checkpoint is incomplete") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: holds {type(config).__name__}, not an object of settings")
    return config


def empty_model(
    model: type[PreTrainedModel], config: type[PretrainedConfig], settings: dict[str, Any], where: Path
) -> PreTrainedModel:
    """A model without pooler whose weights are yet to come. Raises `ArtifactError` for settings that make no model."""
    # The form that the weights are read in is ours to choose.
    known = {name: value for name, value in settings.items() if name not in ("dtype", "torch_dtype")}
    try:
        with no_init_weights():
            made: PreTrainedModel = model._from_config(
                config.from_dict(known), attn_implementation="sdpa", dtype=torch.float32, add_pooling_layer=False
            )
    except Exception as error:  # checks of the settings raise what they like
        raise ArtifactError(f"{where}: no {model.__name__} can be made of its settings: {error}") from error
    freeze_unused(made)
    return made


def make_encoder(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    head: nn.ModuleList,
    tokenizer: Any,
    layout: CheckpointLayout,
) -> Encoder:
    """An encoder on the CPU in float32 with padded attention, which `Encoder.placed` changes; `weights` are those of
    `model`, checked before."""
    model.load_state_dict(weights)
    if len(tokenizer) > model.config.vocab_size:
        raise ArtifactError(
            f"{layout.transformer}: the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}; "
            "they do not belong together"
        )
    pad = tokenizer.pad_token_id or 0
    return Encoder(PackedBackbone(model.eval(), "padded", pad), head, tokenizer, layout).eval()


def foreign_layout(folder: Path | None, tokenizer: Any, where: Path, head: tuple[HeadModule, ...]) -> CheckpointLayout:
    """The layout of the checkpoint `where`: first token, head, inner products, and what notes in `folder` say.

    folder: None for a file; notes in its folder may be about anything that lies there.
    """
    longest = tokenizer.model_max_length
    layout = CheckpointLayout(
        where,
        pooling="cls",
        head=head,
        similarity="dot",
        max_seq_length=longest if longest < 10**9 else None,
    )
    if folder is None:
        return layout
    notes = read_notes(folder)
    for name in NOTES:
        if name in notes and not (notes[name] in ("cls", "mean") if name == "pooling" else _is_length(notes[name])):
            raise ArtifactError(f"{folder}: {name}={notes[name]!r} in its ance_fast.json means nothing")
    said = {name: notes[name] for name in NOTES if name in notes}
    return dataclasses.replace(layout, chunks=noted_chunks(folder), **said)


def _is_length(value: object) -> bool:
    # Shorter ones have no room for a token beside the first and the last.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 3


def foreign_tokenizer(folder: Path, kind: str, options: ReadOptions, preset: str) -> Any:
    """The tokenizer of `folder`, or the one that the options name.

    kind: which vocabulary files are meant, "roberta" (vocab.json, merges.txt), "bert" or "seed" (vocab.txt). preset:
    the rules of tokenisation where only a vocabulary is there and the options name none.

    Raises `ArtifactError` if there is no tokenizer.
    """

    source = options.tokenizer or folder
    if not source.exists():
        raise ArtifactError(f"{source}: no such tokenizer")
    if (source / "tokenizer.json").is_file():
        # transformers knows no SEED-Encoder, and would say so when it looks for a class of its own.
        tokenizer = _load(source, "fast" if kind == "seed" else "any")
        return tokenizer if options.text_preset is None else released_tokenizer(tokenizer, options.text_preset)
    if source.is_file() and len(_VOCABULARIES[kind]) > 1:
        files = " and ".join(_VOCABULARIES[kind])
        raise ArtifactError(f"{source}: one file of several; name the folder that holds {files}")
    missing = [name for name in _VOCABULARIES[kind] if source.is_dir() and not (source / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{source}: no tokenizer (tokenizer.json, or {' and '.join(_VOCABULARIES[kind])}); name the folder of one "
            "with --tokenizer"
        )
    rules = options.text_preset or preset
    if kind == "seed" and rules.split(",")[0].strip() != "seed":
        text_rules(rules)
        raise ConfigError(
            f"text_preset={rules!r}: a vocab.txt of SEED-Encoder becomes a tokenizer by the rules of 'seed' alone "
            "(seed,lower_case=false)"
        )
    # SEED-Encoder's is made of its vocabulary; nobody else has its form.
    return released_tokenizer(source if kind == "seed" else _load(source, kind), rules)


_VOCABULARIES = {"roberta": ("vocab.json", "merges.txt"), "bert": ("vocab.txt",), "seed": ("vocab.txt",)}


def _load(source: Path, kind: str) -> Any:
    from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

    classes: dict[str, Any] = {
        "roberta": RobertaTokenizer,
        "bert": BertTokenizer,
        "fast": PreTrainedTokenizerFast,
        "any": AutoTokenizer,
    }
    try:
        return classes[kind].from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{source}: the tokenizer could not be loaded: {error}") from error


def write_tokenizer(encoder: Encoder, folder: Path) -> None:
    """`tokenizer.json`, which holds all rules, and the vocabulary files that older programs read."""
    encoder.tokenizer.save_pretrained(folder)
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.model).__name__ in ("BPE", "WordPiece"):
        backend.model.save(str(folder))


def refuse_unwritable(encoder: Encoder, form: str, pooling: tuple[str, ...] = ("cls",)) -> None:
    """Raise `ConfigError` for what no checkpoint of another program has a place for."""
    layout = encoder.layout
    problem = None
    if encoder.query_encoder is not None:
        problem = "has two towers"
    elif layout.pooling not in pooling:
        problem = f"has {layout.pooling} pooling (there it is {' or '.join(pooling)})"
    elif layout.normalize:
        problem = "L2-normalises its vectors"
    elif any(layout.prompts.values()):
        problem = "has prompts"
    if problem is not None:
        raise ConfigError(f"{form} has no place for this encoder: it {problem}; write sentence-transformers instead")


def as_float32(encoder: Encoder) -> dict[str, Tensor]:
    """The transformer's tensors without pooler, float32 on the CPU."""
    return {
        name: tensor.detach().to("cpu", torch.float32)
        for name, tensor in encoder.backbone.model.state_dict().items()
        if not name.startswith("pooler.")
    }


def notes_of(encoder: Encoder) -> dict[str, Any]:
    """What `foreign_layout` reads back."""
    chunks = encoder.layout.chunks
    settings = {name: getattr(encoder.layout, name) for name in NOTES}
    return settings | {"chunks": None if chunks is None else chunks.as_json()}
