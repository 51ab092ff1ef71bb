"""An inference-only stack for BERT-shaped encoders on packed tokens: fp32 on the CPU, fp16 and bf16 on CUDA.

It runs the weights of a transformers model and computes what the plug-in path (`packed_attention.py`) computes, with
fewer passes over memory: embedding sums with their LayerNorm, bias+GELU and bias+residual+LayerNorm in one pass each,
one product for query, key and value, attention without reshapes, and workspaces that are reused from batch to batch.
Where only first tokens are pooled, the last layer computes only those: per token it is left with the products of keys
and values, 4 of its 24 D^2 FLOPs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ance_fast.ops.encoder_layer import (
    bias_gelu_,
    bias_residual_layernorm_,
    embed_layernorm,
    packed_cls_attention,
    packed_self_attention,
)

BERT_SHAPED = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")


@dataclass(frozen=True)
class _Layer:
    qkv: Tensor  # [3 D, D], a copy
    qkv_bias: Tensor  # [3 D], a copy
    attention: Any
    attention_out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    out_norm: nn.LayerNorm


class Workspace(threading.local):
    """Named matrices that grow to the most rows asked for and are then handed out again and again; a thread's own."""

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised [rows, columns] of the dtype and device of `like`; what the name held before is gone."""
        room = self._room.get(name)
        if room is None or len(room) < shape[0]:
            room = self._room[name] = like.new_empty(shape)
        return room[: shape[0]]


class BertStack:
    """Hidden states of packed tokens by a BERT-shaped model. Use `bert_stack`, which says when it applies.

    It reads the model's own tensors and a joined copy of each layer's query, key and value: call `refresh` after the
    weights have changed in place, and make a new stack when they lie elsewhere (`is_current`).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.embeddings: Any = model.embeddings
        self.heads = int(model.config.num_attention_heads)
        self.layers = [_read_layer(layer) for layer in model.encoder.layer]  # type: ignore[union-attr]
        self.workspace = Workspace()
        # cuBLAS adds a bias on its way out; on the CPU the attention kernel does it as it reads.
        self.bias_in_product = model.device.type == "cuda"
        self._places = _places(model)

    def is_current(self, model: PreTrainedModel) -> bool:
        """Whether the weights of `model` still lie where they lay when the stack was made."""
        return self._places == _places(model)

    def refresh(self) -> None:
        """Copy query, key and value weights again, to where they were: captured graphs see them as well."""
        for layer in self.layers:
            own = layer.attention
            torch.cat([part.weight.detach() for part in (own.query, own.key, own.value)], out=layer.qkv)
            torch.cat([part.bias.detach() for part in (own.query, own.key, own.value)], out=layer.qkv_bias)

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        cls_only: bool = False,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """Hidden states [T, D] of token ids and positions int64 [T] in sequences cu_seqlens int32 [B + 1].

        cls_only: hidden states [B, D] of first tokens alone, zeros for an empty sequence. T must not be 0. No sequence
        is longer than max_seqlen. The result lies in the workspace: it is valid until the next call.
        """
        space = self.workspace if workspace is None else workspace
        x = self._embed(input_ids, position_ids, space)
        for layer in self.layers[:-1] if cls_only else self.layers:
            qkv, bias = self._project(x, layer, space)
            mixed = packed_self_attention(qkv, bias, cu_seqlens, self.heads, max_seqlen, out=space("mixed", x.shape, x))
            x = _after_attention(mixed, x, layer, space)
        return self._first_tokens(x, cu_seqlens, max_seqlen, space) if cls_only else x

    def _embed(self, input_ids: Tensor, position_ids: Tensor, space: Workspace) -> Tensor:
        words, norm = self.embeddings.word_embeddings.weight, self.embeddings.LayerNorm
        return embed_layernorm(
            input_ids,
            position_ids,
            words,
            self.embeddings.position_embeddings.weight,
            self.embeddings.token_type_embeddings.weight[0],
            norm.weight,
            norm.bias,
            norm.eps,
            out=space("embedded", (len(input_ids), words.shape[1]), words),
        )

    def _project(self, x: Tensor, layer: _Layer, space: Workspace) -> tuple[Tensor, Tensor | None]:
        """Query, key and value [T, 3 D], and the bias that attention is to add."""
        out = space("qkv", (len(x), len(layer.qkv)), x)
        if self.bias_in_product:
            return torch.addmm(layer.qkv_bias, x, layer.qkv.t(), out=out), None
        return torch.mm(x, layer.qkv.t(), out=out), layer.qkv_bias

    def _first_tokens(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, space: Workspace) -> Tensor:
        """The last layer, where only first tokens ask; all are asked."""
        layer, width = self.layers[-1], x.shape[1]
        # An empty sequence at the end begins after the last token.
        first = x.index_select(0, cu_seqlens[:-1].clamp(max=len(x) - 1))
        q = torch.addmm(layer.qkv_bias[:width], first, layer.qkv[:width].t())
        kv = torch.mm(x, layer.qkv[width:].t(), out=space("kv", (len(x), 2 * width), x))
        mixed = packed_cls_attention(q, kv, cu_seqlens, self.heads, max_seqlen)
        # Weights sum to 1, so the bias of values is added once; that of keys moves all scores of a query alike.
        mixed = mixed + layer.qkv_bias[2 * width :]
        out = _after_attention(mixed, first, layer, space)
        return out.masked_fill_((cu_seqlens.diff() == 0).unsqueeze(1), 0.0)


def why_no_stack(model: PreTrainedModel) -> str | None:
    """Why `model` has no fused stack, or None if it has one."""
    config, name = model.config, type(model).__name__
    if name not in BERT_SHAPED:
        return f"{name} is not BERT-shaped ({', '.join(BERT_SHAPED)} are)"
    if config.hidden_act != "gelu":
        return f"the activation is {config.hidden_act!r}; the fused one is the exact 'gelu'"
    if config.is_decoder:
        return "the model is a decoder"
    if len({(p.device, p.dtype) for p in model.parameters()}) != 1:
        return "the weights are of several dtypes or on several devices"
    weight, head_dim = next(model.parameters()), config.hidden_size // config.num_attention_heads
    if (weight.device.type, weight.dtype) not in _SERVED:
        return f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type} has no fused kernels"
    step, most = _SERVED[weight.device.type, weight.dtype]
    if head_dim % step or head_dim > most:
        return f"heads are {head_dim} wide; the attention kernel takes multiples of {step} up to {most}"
    return None


def bert_stack(model: PreTrainedModel) -> BertStack | None:
    """The stack for `model`, or None: `why_no_stack` says why."""
    return BertStack(model) if why_no_stack(model) is None else None


# Step and largest width of a head that the attention kernel takes, by device and dtype.
_SERVED = {
    ("cpu", torch.float32): (16, 1 << 30),
    ("cuda", torch.float16): (8, 256),
    ("cuda", torch.bfloat16): (8, 256),
}


def _after_attention(mixed: Tensor, x: Tensor, layer: _Layer, space: Workspace) -> Tensor:
    """Output projection and feed-forward part of a layer whose input was x, for the rows of `mixed`."""
    y = torch.mm(mixed, layer.attention_out.weight.t(), out=space("attended", x.shape, x))
    _add_and_norm(y, layer.attention_out, x, layer.attention_norm)
    wide = torch.mm(y, layer.up.weight.t(), out=space("wide", (len(y), layer.up.out_features), y))
    bias_gelu_(wide, layer.up.bias)
    x = torch.mm(wide, layer.down.weight.t(), out=space("out", y.shape, y))
    return _add_and_norm(x, layer.down, y, layer.out_norm)


def _add_and_norm(x: Tensor, linear: nn.Linear, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    return bias_residual_layernorm_(x, linear.bias, residual, norm.weight, norm.bias, norm.eps)


def _read_layer(layer: Any) -> _Layer:
    own = layer.attention.self
    parts = (own.query, own.key, own.value)
    return _Layer(
        qkv=torch.cat([part.weight.detach() for part in parts]),
        qkv_bias=torch.cat([part.bias.detach() for part in parts]),
        attention=own,
        attention_out=layer.attention.output.dense,
        attention_norm=layer.attention.output.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        out_norm=layer.output.LayerNorm,
    )


def _places(model: PreTrainedModel) -> list[tuple[int, torch.dtype]]:
    return [(parameter.data_ptr(), parameter.dtype) for parameter in model.parameters()]
