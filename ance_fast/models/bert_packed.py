"""An inference-only stack for BERT-shaped encoders on packed tokens.

It runs the weights of a transformers model and computes what the plug-in path (`packed_attention.py`) computes, with
fewer passes over memory: one product for query, key and value, bias+GELU and bias+residual+LayerNorm in one pass each,
attention without reshapes, and workspaces that are reused from batch to batch. Weights are read when the stack is made:
make a new one after they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ance_fast.ops.encoder_layer import bias_gelu_, bias_residual_layernorm_, packed_self_attention

BERT_SHAPED = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")


@dataclass(frozen=True)
class _Layer:
    qkv: Tensor
    qkv_bias: Tensor
    attention_out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    out_norm: nn.LayerNorm


class BertStack:
    """Hidden states of packed tokens by a BERT-shaped model. Use `bert_stack`, which says when it applies."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.embeddings: Any = model.embeddings
        self.heads = int(model.config.num_attention_heads)
        self.layers = [_read_layer(layer) for layer in model.encoder.layer]  # type: ignore[union-attr]
        self._room: dict[str, Tensor] = {}

    def __call__(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Hidden states [T, hidden] of token ids and positions int64 [T]; valid until the next call."""
        tokens = len(input_ids)
        x: Tensor = self.embeddings(input_ids=input_ids.unsqueeze(0), position_ids=position_ids.unsqueeze(0))[0]
        for layer in self.layers:
            qkv = torch.mm(x, layer.qkv.t(), out=self._space("qkv", tokens, layer.qkv.shape[0]))
            mixed = packed_self_attention(
                qkv, layer.qkv_bias, cu_seqlens, self.heads, out=self._space("mixed", tokens, x.shape[1])
            )
            y = torch.mm(mixed, layer.attention_out.weight.t(), out=self._space("attended", tokens, x.shape[1]))
            _add_and_norm(y, layer.attention_out, x, layer.attention_norm)
            wide = torch.mm(y, layer.up.weight.t(), out=self._space("wide", tokens, layer.up.out_features))
            bias_gelu_(wide, layer.up.bias)
            x = torch.mm(wide, layer.down.weight.t(), out=self._space("out", tokens, x.shape[1]))
            _add_and_norm(x, layer.down, y, layer.out_norm)
        return x

    def _space(self, name: str, rows: int, columns: int) -> Tensor:
        room = self._room.get(name)
        if room is None or len(room) < rows:
            room = self._room[name] = torch.empty(rows, columns)
        return room[:rows]


def bert_stack(model: PreTrainedModel) -> BertStack | None:
    """The stack for `model`, or None: only fp32 BERT-shaped encoders with GELU on the CPU have one."""
    config = model.config
    fits = (
        type(model).__name__ in BERT_SHAPED
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and config.hidden_size // config.num_attention_heads % 16 == 0
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    )
    return BertStack(model) if fits else None


def _add_and_norm(x: Tensor, linear: nn.Linear, residual: Tensor, norm: nn.LayerNorm) -> None:
    bias_residual_layernorm_(x, linear.bias, residual, norm.weight, norm.bias, norm.eps)


def _read_layer(layer: Any) -> _Layer:
    own = layer.attention.self
    parts = (own.query, own.key, own.value)
    return _Layer(
        qkv=torch.cat([part.weight.detach() for part in parts]),
        qkv_bias=torch.cat([part.bias.detach() for part in parts]),
        attention_out=layer.attention.output.dense,
        attention_norm=layer.attention.output.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        out_norm=layer.output.LayerNorm,
    )
