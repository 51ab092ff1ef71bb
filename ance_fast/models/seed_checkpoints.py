"""Checkpoints of SEED-Encoder: transformers' folder or tar of one, fairseq's pre-trained file, the fine-tuned file.

| format | tensors | head |
| --- | --- | --- |
| seed-hf | `seed_encoder.encoder.sentence_encoder.*` | `embeddingHead.*`, `norm.*`; none in the pre-trained ones |
| seed-fairseq | `model`: `encoder.sentence_encoder.*` | none |
| seed-finetuned | `module.encoder.*` | `module.embeddingHead.*`, `module.norm.*` |

The decoder that SEED-Encoder was pre-trained with, language-model and classification heads are left out. A checkpoint
without a head gives the first token's hidden state. Source of the names: microsoft/SEED-Encoder, model/models.py and
model/SEED_Encoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ance_fast.artifacts import atomic_file
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.ance_head import HEAD_NAMES, NO_HEAD, Head, head_state, read_head
from ance_fast.models.attention_heads import refuse_unsaid_heads
from ance_fast.models.encoder import Encoder
from ance_fast.models.fairseq_weights import model_from_fairseq, state_for_fairseq
from ance_fast.models.foreign import (
    ReadOptions,
    as_float32,
    foreign_layout,
    foreign_tokenizer,
    make_encoder,
    refuse_unwritable,
)
from ance_fast.models.state_dicts import stripped, without_prefixes
from ance_fast.models.weight_files import plain_tensors, read_state, tensors_of, write_state, writing

PRETRAINED = "encoder.sentence_encoder."
_FINE_TUNED = "encoder."


def is_fairseq(path: Path, trust: bool = False) -> bool:
    """Whether `path` is a file of fairseq with a pre-trained encoder."""
    state = _state(path, trust)
    model = state.get("model") if isinstance(state, Mapping) else None
    return isinstance(model, Mapping) and any(str(name).startswith(PRETRAINED) for name in model)


def is_finetuned(path: Path, trust: bool = False) -> bool:
    """Whether `path` is a state dictionary of a fine-tuned SEED-Encoder."""
    state = _state(path, trust)
    names = stripped(map(str, state), ("module.",)).values() if isinstance(state, Mapping) else ()
    return "encoder.embed_tokens.weight" in names


def read_fairseq(path: Path, options: ReadOptions) -> Encoder:
    """The encoder of a pre-trained file, without a head. Raises as `read_ance` does."""
    state = read_state(path, trust=options.trust)
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise ArtifactError(f"{path}: no 'model' in it, so this is not a checkpoint of fairseq")
    model = tensors_of(state["model"], path)
    body = {
        name: tensor
        for name, tensor in model.items()
        # As the original's loader chooses.
        if "encoder" in name and "lm_head" not in name and "decode" not in name
    }
    heads = options.heads or getattr(state.get("args"), "encoder_attention_heads", None)
    made, weights = model_from_fairseq(body, path, prefix=PRETRAINED, heads=heads)
    return encoder_of(made, weights, NO_HEAD, path, path.parent, options)


def read_finetuned(path: Path, options: ReadOptions) -> Encoder:
    """The encoder of a fine-tuned file, with its head. Raises as `read_ance` does."""
    state = without_prefixes(tensors_of(read_state(path, trust=options.trust), path), ("module.",))
    head = {name: tensor for name, tensor in state.items() if name in HEAD_NAMES}
    body = {name: tensor for name, tensor in state.items() if name not in head}
    model, weights = model_from_fairseq(body, path, prefix=_FINE_TUNED, heads=options.heads)
    return encoder_of(model, weights, read_head(head, model.config.hidden_size, path), path, path.parent, options)


def encoder_of(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    head: Head,
    where: Path,
    folder: Path,
    options: ReadOptions,
    notes: Path | None = None,
) -> Encoder:
    """The encoder of what was read from `where`; its tokenizer lies in `folder`, its notes in that of `notes`."""
    tokenizer = foreign_tokenizer(folder, "seed", options, "seed")
    return make_encoder(model, weights, head[1], tokenizer, foreign_layout(notes, tokenizer, where, head[0]))


def write_fairseq(encoder: Encoder, path: Path) -> None:
    """Write a pre-trained file, as `torch.save` of torch 1.x does; whole or not at all.

    Raises `ConfigError` for an encoder with a head, or one that fairseq's encoder is not.
    """
    if encoder.layout.head:
        raise ConfigError(
            "seed-fairseq has no place for a head; write seed-finetuned, or leave it out with --head none"
        )
    body = fairseq_state(encoder, "seed-fairseq")
    config: Any = encoder.backbone.model.config
    settings = argparse.Namespace(
        arch="seed_encoder",
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        max_positions=config.max_position_embeddings - 2,
    )
    _save({"args": settings, "model": plain_tensors({PRETRAINED + name: body[name] for name in body})}, path)


def write_finetuned(encoder: Encoder, path: Path) -> None:
    """Write a fine-tuned file with its head.

    Raises as `write_fairseq` does, and `ConfigError` without a head and for attention heads that are not of 64
    dimensions where whoever reads the file would take them for that.
    """
    body = fairseq_state(encoder, "seed-finetuned")
    refuse_unsaid_heads(encoder.backbone.model.config, "seed-finetuned")
    head = head_state(encoder, "seed-finetuned")
    named = {_FINE_TUNED + name: tensor for name, tensor in body.items()} | head
    _save(plain_tensors({"module." + name: tensor for name, tensor in named.items()}), path)


def fairseq_state(encoder: Encoder, form: str) -> dict[str, Tensor]:
    """The transformer's tensors under fairseq's names. Raises `ConfigError` where it has no such form."""
    refuse_unwritable(encoder, form)
    return state_for_fairseq(as_float32(encoder), encoder.backbone.model, form)


def _save(state: Mapping[str, Any], path: Path) -> None:
    with writing(path), atomic_file(path) as staging:
        write_state(state, staging)


def _state(path: Path, trust: bool) -> Any:
    """What a file holds, or None for what is no file that can be read."""
    if not path.is_file():
        return None
    try:
        return read_state(path, trust=trust, mapped=True)
    except ArtifactError:
        return None
