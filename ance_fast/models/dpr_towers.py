"""DPR's towers: BERT's first token, with or without a projection, as the tensors of released checkpoints and back.

Names and settings: facebookresearch/DPR (HFBertEncoder), transformers' DPREncoder and microsoft/ANCE, model/models.py
(class BiEncoder). BERT's pooler lies in many of these files, and nothing uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.ance_head import IDENTITY, NO_HEAD, Head
from ance_fast.models.attention_heads import attention_heads
from ance_fast.models.encoder import Encoder
from ance_fast.models.foreign import (
    ReadOptions,
    as_float32,
    empty_model,
    foreign_layout,
    make_encoder,
    refuse_unwritable,
)
from ance_fast.models.heads import head_module
from ance_fast.models.layouts import HeadModule
from ance_fast.models.state_dicts import refuse_misfit, shapes_of

POOLER = "pooler."
PROJECTION = "encode_proj"
# A buffer of older transformers.
_BUFFER = "embeddings.position_ids"


def bert_tower(
    state: Mapping[str, Tensor],
    settings: dict[str, Any],
    projection: Mapping[str, Tensor],
    prefixes: tuple[str, str],
    tokenizer: Any,
    where: Path,
) -> Encoder:
    """The tower of BERT's tensors `state` under BertModel's names.

    settings: of `BertConfig`. projection: "weight" and "bias" of a Linear behind the first token, or nothing. prefixes:
    what the file puts before the names of both. where: the file, or the folder, whose notes count.

    Raises `ArtifactError` for tensors that are missing, not known or of other shapes.
    """
    body = {name: tensor for name, tensor in state.items() if not name.startswith(POOLER) and name != _BUFFER}
    model = empty_model(BertModel, BertConfig, settings, where)
    shapes = shapes_of(model.state_dict())
    prefix = prefixes[0]
    refuse_misfit(
        {prefix + name: tensor for name, tensor in body.items()},
        {prefix + name: shape for name, shape in shapes.items()},
        where,
    )
    specs, head = _projection(projection, int(model.config.hidden_size), prefixes[1], where)
    notes = where if where.is_dir() else None
    return make_encoder(model, body, head, tokenizer, foreign_layout(notes, tokenizer, where, specs))


def bert_settings(state: Mapping[str, Tensor], heads: Any, prefix: str, where: Path) -> dict[str, Any]:
    """Settings of `BertConfig` that weights show; the rest is that of bert-base-uncased.

    heads: attention heads, which weights do not show; None: heads of 64. Raises `ArtifactError` for weights that are
    not BERT's, `ConfigError` where the number of heads has to be said.
    """
    needed = {
        "vocab_size": "embeddings.word_embeddings.weight",
        "max_position_embeddings": "embeddings.position_embeddings.weight",
        "type_vocab_size": "embeddings.token_type_embeddings.weight",
        "intermediate_size": "encoder.layer.0.intermediate.dense.weight",
    }
    missing = [prefix + name for name in needed.values() if name not in state or state[name].ndim != 2]
    if missing:
        raise ArtifactError(f"{where}: the weights do not fit; {len(missing)} tensors missing ({', '.join(missing)})")
    hidden = state["embeddings.word_embeddings.weight"].shape[1]
    heads = attention_heads(heads, hidden, where)
    layers = {match[1] for name in state if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    found = {setting: state[name].shape[0] for setting, name in needed.items()}
    return {**found, "hidden_size": hidden, "num_hidden_layers": len(layers), "num_attention_heads": heads}


def tower_state(tower: Encoder, form: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A tower's tensors under BertModel's names, without pooler, and its projection's; float32 on the CPU.

    Raises `ConfigError` for what is not BERT's first token with at most a projection behind it.
    """
    refuse_unwritable(tower, form)
    config: Any = tower.backbone.model.config
    problem = None
    if type(tower.backbone.model).__name__ != "BertModel":
        problem = f"is a {type(tower.backbone.model).__name__}, not a BertModel"
    elif config.hidden_act != "gelu" or abs(config.layer_norm_eps - 1e-12) > 1e-13:
        problem = f"has hidden_act {config.hidden_act!r} and layer_norm_eps {config.layer_norm_eps:g}, not BERT's"
    elif not is_projection(tower.layout.head):
        found = " and ".join(spec.kind for spec in tower.layout.head)
        problem = f"has the head {found}, there it is one Dense without activation"
    if problem is not None:
        raise ConfigError(f"{form} has no place for this encoder: it {problem}; write sentence-transformers instead")
    head = {name.removeprefix("0.linear."): tensor for name, tensor in tower.head.state_dict().items()}
    return as_float32(tower), {name: tensor.detach().to("cpu", torch.float32) for name, tensor in head.items()}


def is_projection(specs: tuple[HeadModule, ...]) -> bool:
    """Whether a head is at most a Linear."""
    config = specs[0].config if specs else {}
    return not specs or (
        [spec.kind for spec in specs] == ["Dense"]
        and config.get("activation_function") == IDENTITY
        and config.get("bias", True)
        and not config.get("use_residual", False)
    )


def alone(tower: Encoder) -> Encoder:
    """`tower` without a query tower beside it."""
    if tower.query_encoder is None:
        return tower
    made = Encoder(tower.backbone, tower.head, tower.tokenizer, tower.layout)
    made._checkpoint_digest = tower._checkpoint_digest
    return made.train(tower.training)


def heads_of(options: ReadOptions, said: object) -> object:
    """Attention heads: what the user says, else what the checkpoint does; None if neither."""
    return options.heads if options.heads is not None else said


def _projection(tensors: Mapping[str, Tensor], hidden: int, name: str, where: Path) -> Head:
    if not tensors:
        return NO_HEAD
    weight = tensors.get("weight", torch.empty(0))
    width = len(weight)
    refuse_misfit(
        {f"{name}.{key}": tensor for key, tensor in tensors.items()},
        {f"{name}.weight": torch.Size([width, hidden]), f"{name}.bias": torch.Size([width])},
        where,
    )
    config = {"in_features": hidden, "out_features": width, "bias": True, "activation_function": IDENTITY}
    spec = HeadModule("Dense", config)
    module = head_module(spec)
    module.load_state_dict({f"linear.{key}": tensor for key, tensor in tensors.items()})
    return (spec,), nn.ModuleList([module])
