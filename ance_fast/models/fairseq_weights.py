"""fairseq's TransformerSentenceEncoder, which SEED-Encoder is, as transformers' RobertaModel and back.

Both are the same post-LayerNorm encoder: learned positions that begin behind the padding id, one LayerNorm on the sum
of the embeddings, exact GELU. They differ in names, and RoBERTa adds a token-type vector, always the same one: zero
here, and kept so while training (`frozen_token_types` in the configuration). Written back, one that is not zero is
added to the positions, of which every token has exactly one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, RobertaConfig, RobertaModel

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.attention_heads import attention_heads
from ance_fast.models.foreign import empty_model
from ance_fast.models.state_dicts import refuse_misfit

EPS = 1e-5
PADDING = 1
_TYPES = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embed_positions.weight"

_NAMES = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "emb_layer_norm": "embeddings.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_BACK = {theirs: ours for ours, theirs in _NAMES.items()}


def model_from_fairseq(
    state: Mapping[str, Tensor],
    where: Path,
    *,
    prefix: str = "",
    heads: Any = None,
    layers: Any = None,
    more: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """An empty RobertaModel, and its weights, for an encoder of fairseq.

    state: the encoder's tensors and no others, `prefix` + embed_tokens.weight, layers.0.fc1.weight, ... heads:
    attention heads, which the weights do not show; None: heads of 64. layers: how many there have to be, where that is
    known. more: further settings of RobertaConfig.

    Raises `ArtifactError` for tensors that are missing, not known or of other shapes, `ConfigError` if the number of
    heads has to be said.
    """
    # Made by fairseq itself, not trained.
    state = {name: tensor for name, tensor in state.items() if name != f"{prefix}version"}
    ours = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    settings = _settings(ours, where, prefix, heads, layers) | dict(more or {})
    model = empty_model(RobertaModel, RobertaConfig, settings, where)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name != _TYPES}
    refuse_misfit(state, {prefix + _to_fairseq(name): shape for name, shape in shapes.items()}, where)
    types: Any = model.embeddings.token_type_embeddings  # type: ignore[union-attr]
    return model, {_from_fairseq(name): tensor for name, tensor in ours.items()} | {
        _TYPES: torch.zeros_like(types.weight)
    }


def state_for_fairseq(model_state: Mapping[str, Tensor], model: PreTrainedModel, form: str) -> dict[str, Tensor]:
    """The tensors of a RobertaModel under fairseq's names.

    Raises `ConfigError` where the model is not the encoder that fairseq would make of them.
    """
    config: Any = model.config
    problem = None
    if type(model).__name__ != "RobertaModel":
        problem = f"is a {type(model).__name__}, not a RobertaModel"
    elif config.hidden_act != "gelu":
        problem = f"has the activation {config.hidden_act!r}, there it is the exact 'gelu'"
    elif abs(config.layer_norm_eps - EPS) > 1e-9:
        problem = f"has layer_norm_eps {config.layer_norm_eps:g}, there it is {EPS:g}"
    elif config.pad_token_id != PADDING:
        problem = f"has the padding id {config.pad_token_id}, there it is {PADDING}"
    if problem is not None:
        raise ConfigError(f"{form} has no place for this encoder: it {problem}")
    state = {_to_fairseq(name): tensor for name, tensor in model_state.items() if name != _TYPES}
    types = model_state[_TYPES][0]
    if types.any():
        positions = state[_POSITIONS].clone()
        positions[PADDING + 1 :] += types
        state[_POSITIONS] = positions
    return state


def _settings(state: Mapping[str, Tensor], where: Path, prefix: str, heads: Any, layers: Any) -> dict[str, Any]:
    needed = ("embed_tokens.weight", _POSITIONS, "layers.0.fc1.weight")
    missing = [prefix + name for name in needed if name not in state or state[name].ndim != 2]
    if missing:
        raise ArtifactError(f"{where}: the weights do not fit; tensors {len(missing)} missing ({', '.join(missing)})")
    vocabulary, hidden = state["embed_tokens.weight"].shape
    found = {match[1] for name in state if (match := re.match(r"layers\.(\d+)\.", name))}
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": len(found) if layers is None else layers,
        "num_attention_heads": attention_heads(heads, hidden, where),
        "intermediate_size": state["layers.0.fc1.weight"].shape[0],
        "hidden_act": "gelu",
        "max_position_embeddings": state[_POSITIONS].shape[0],
        "type_vocab_size": 1,
        "layer_norm_eps": EPS,
        "pad_token_id": PADDING,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "frozen_token_types": True,
    }


def _to_fairseq(name: str) -> str:
    """embeddings.LayerNorm.bias -> emb_layer_norm.bias, encoder.layer.3.output.dense.bias -> layers.3.fc2.bias"""
    module, kind = name.rsplit(".", 1)
    layer = re.match(r"encoder\.layer\.(\d+)\.(.+)", module)
    return f"layers.{layer[1]}.{_BACK[layer[2]]}.{kind}" if layer else f"{_BACK[module]}.{kind}"


def _from_fairseq(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    layer = re.match(r"layers\.(\d+)\.(.+)", module)
    return f"encoder.layer.{layer[1]}.{_NAMES[layer[2]]}.{kind}" if layer else f"{_NAMES[module]}.{kind}"
