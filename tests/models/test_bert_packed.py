"""The inference stack computes what the plug-in path computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ance_fast import Encoder
from ance_fast.data.packing import PackedBatch, Packer, ragged
from ance_fast.errors import ConfigError
from ance_fast.models.bert_packed import BertStack, bert_stack, why_no_stack

TEXTS = ["", "a", "two words", "many words " * 50, *(f"text number {i} " * (i % 13) for i in range(30))]


def load(folder: Path, **options: str) -> Encoder:
    """The encoder, with biases and sharp attention where fresh weights have neither."""
    encoder = Encoder.load(str(folder), **options)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.backbone.model.encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw))
            else:
                parameter.mul_(8)
    return encoder


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "XLMRoberta", "Camembert"])
def test_the_stack_equals_the_plug_in_path(tiny: Callable[..., Path], architecture: str) -> None:
    encoder = load(tiny(architecture, num_attention_heads=2))
    tokens = encoder._tokenize(TEXTS, 70)
    for batch in Packer([(tokens.values, tokens.offsets)]).batches(token_budget=200):
        with torch.no_grad():
            plain = encoder(batch)
        with encoder.backbone.inference():
            assert encoder.backbone.fused
            fused = encoder(batch).clone()
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_the_stack_follows_the_weights_from_one_call_to_the_next(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)))
    before = encoder.encode(TEXTS)
    with torch.no_grad():
        encoder.backbone.model.encoder.layer[0].attention.self.query.weight.mul_(3)
    after = encoder.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(after, Encoder.encode(encoder, TEXTS, batch_tokens=100), atol=1e-6)


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("layers", [1, 2])
def test_first_tokens_alone_are_those_of_the_whole_layer(
    tiny: Callable[..., Path], architecture: str, layers: int
) -> None:
    folder = tiny(architecture, num_attention_heads=2, num_hidden_layers=layers)
    plain = load(folder, pooling="cls", attention="padded")
    packed = load(folder, pooling="cls")
    for one, two in ((plain, packed), (packed, packed)):
        tokens = one._tokenize(TEXTS, 70)
        for batch in Packer([(tokens.values, tokens.offsets)]).batches(token_budget=300):
            with torch.no_grad():
                expected = one(batch)
            with two.backbone.inference():
                hidden = two.hidden(batch)
                assert hidden.shape == (len(batch), 32)
                found = two.pool(hidden, batch)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def varlen_on_the_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """`varlen_attn` sequence by sequence, with what FlashAttention asks of its arguments."""
    out = torch.zeros(q.shape)
    for cu, longest, rows in ((cu_q, longest_q, q), (cu_k, longest_k, k)):
        assert cu.dtype == torch.int32
        assert cu.diff().max() <= longest
        assert cu[-1] == len(rows)
        assert rows.stride(-1) == 1
    assert len(cu_q) == len(cu_k)
    for b in range(len(cu_q) - 1):
        ours, theirs = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        parts = (x.transpose(0, 1) for x in (q[ours], k[theirs], v[theirs]))
        out[ours] = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1)
    return out


@pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter beside a GPU")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("architecture", ["Bert", "Roberta"])
def test_the_stack_of_a_gpu_computes_the_same(
    tiny: Callable[..., Path], architecture: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(tiny(architecture, num_attention_heads=2), pooling=pooling)
    batch = Packer([ragged([[5, 6, 7] * 20, [8], [9, 10, 11], []])]).pack(np.arange(4))
    with torch.no_grad():
        expected = encoder(batch)
    used = []

    def gpu_backend(op: str, *_: object) -> str:
        used.append(op)
        return "varlen" if op == "packed_self_attention" else "triton"

    monkeypatch.setattr("ance_fast.ops.encoder_layer.dispatch", gpu_backend)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_on_the_cpu)
    with encoder.backbone.inference():
        assert isinstance(encoder.backbone._stack, BertStack)
        encoder.backbone._stack.bias_in_product = True
        torch.testing.assert_close(encoder(batch), expected, atol=1e-5, rtol=1e-5)
    layer = ["packed_self_attention", "encoder_layer", "encoder_layer", "encoder_layer"]
    assert used == ["embed_layernorm", *layer, *layer]


def with_empty_sequences() -> PackedBatch:
    return Packer([ragged([[], [7, 8, 9], [], [5], []])]).pack(np.arange(5))


def test_an_empty_sequence_gives_zeros(tiny: Callable[..., Path]) -> None:
    folder, batch = tiny("Bert", num_attention_heads=2), with_empty_sequences()
    encoder = load(folder, pooling="cls")
    with torch.no_grad():
        expected = encoder(batch)
    with encoder.backbone.inference():
        found = encoder(batch)
        nothing = encoder(Packer([ragged([[], []])]).pack(np.arange(2)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.any(1).tolist() == [False, True, False, True, False]
    assert nothing.shape == (2, 32)
    assert not nothing.any()


def test_other_poolings_see_every_token(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)), pooling="last")
    batch = with_empty_sequences()
    with encoder.backbone.inference():
        assert encoder.hidden(batch).shape == (4, 32)


def test_first_tokens_alone_need_the_stack(tiny: Callable[..., Path]) -> None:
    backbone = Encoder.load(str(tiny("Bert", num_attention_heads=2))).backbone
    with pytest.raises(ConfigError, match="cls_only needs the fused stack, which runs within inference"):
        backbone(with_empty_sequences(), cls_only=True)


def test_the_stack_is_kept_as_long_as_the_weights_stay_where_they_are(tiny: Callable[..., Path]) -> None:
    backbone = Encoder.load(str(tiny("Bert", num_attention_heads=2))).backbone
    kept = []
    for move in (False, False, True):
        if move:
            layer = backbone.model.encoder.layer[0].output.dense
            layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)
        with backbone.inference():
            kept.append(backbone._stack)
    assert kept[0] is kept[1]
    assert kept[1] is not kept[2]


def test_a_copy_of_an_encoder_runs_on_its_own_weights(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)))
    before = encoder.encode(TEXTS)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.backbone.model.encoder.layer[0].output.dense.weight.mul_(3)
    assert np.abs(other.encode(TEXTS) - before).max() > 1e-4
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("Bert", {}, "heads are 8 wide; the attention kernel takes multiples of 16"),
        ("Bert", {"num_attention_heads": 2, "hidden_act": "relu"}, "the activation is 'relu'; the fused one is the"),
        ("Bert", {"num_attention_heads": 2, "hidden_act": "gelu_new"}, "the activation is 'gelu_new'"),
        ("Roberta", {"num_attention_heads": 2, "hidden_act": "gelu_pytorch_tanh"}, "the activation is 'gelu_pytorch_t"),
        ("Bert", {"num_attention_heads": 2, "is_decoder": True}, "the model is a decoder"),
        ("DistilBert", {}, "DistilBertModel is not BERT-shaped"),
    ],
)
def test_models_of_another_shape_have_no_stack(
    tiny: Callable[..., Path], architecture: str, settings: dict[str, object], reason: str
) -> None:
    encoder = Encoder.load(str(tiny(architecture, **settings)))
    assert bert_stack(encoder.backbone.model) is None
    assert reason in str(why_no_stack(encoder.backbone.model))
    if encoder.backbone.mode == "packed":
        assert encoder.info()["stack"] == "transformers"
        assert reason in encoder.info()["stack_reason"]


def test_weights_that_no_kernel_takes_have_no_stack(tiny: Callable[..., Path]) -> None:
    model = Encoder.load(str(tiny("Bert", num_attention_heads=2))).backbone.model
    assert why_no_stack(model.bfloat16()) == "bfloat16 on cpu has no fused kernels"
    model.encoder.layer[0].output.dense.float()
    assert why_no_stack(model) == "the weights are of several dtypes or on several devices"


def test_info_says_which_stack_embeds_texts(tiny: Callable[..., Path]) -> None:
    folder = str(tiny("Bert", num_attention_heads=2))
    packed, padded = Encoder.load(folder).info(), Encoder.load(folder, attention="padded").info()
    assert (packed["stack"], packed["stack_reason"]) == ("fused", "BERT-shaped, float32 on cpu")
    assert (padded["stack"], padded["stack_reason"]) == ("transformers", "attention is padded (asked for)")


def test_gradients_do_not_go_through_the_stack(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)))
    encoder.encode(TEXTS)
    tokens = encoder._tokenize(TEXTS, 70)
    (batch,) = Packer([(tokens.values, tokens.offsets)]).batches(token_budget=100_000)
    encoder(batch).sum().backward()
    assert encoder.backbone.model.encoder.layer[0].output.dense.weight.grad is not None
