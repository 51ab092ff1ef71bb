"""The inference stack computes what the plug-in path computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ance_fast import Encoder
from ance_fast.data.packing import Packer
from ance_fast.models.bert_packed import bert_stack

TEXTS = ["", "a", "two words", "many words " * 50, *(f"text number {i} " * (i % 13) for i in range(30))]


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "XLMRoberta", "Camembert"])
def test_the_stack_equals_the_plug_in_path(tiny: Callable[..., Path], architecture: str) -> None:
    encoder = Encoder.load(str(tiny(architecture, num_attention_heads=2)))
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


def test_models_of_another_shape_have_no_stack(tiny: Callable[..., Path]) -> None:
    for folder in (tiny("Bert"), tiny("Bert", num_attention_heads=2, hidden_act="relu"), tiny("DistilBert")):
        assert bert_stack(Encoder.load(str(folder)).backbone.model) is None


def test_gradients_do_not_go_through_the_stack(tiny: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(tiny("Bert", num_attention_heads=2)))
    encoder.encode(TEXTS)
    tokens = encoder._tokenize(TEXTS, 70)
    (batch,) = Packer([(tokens.values, tokens.offsets)]).batches(token_budget=100_000)
    encoder(batch).sum().backward()
    assert encoder.backbone.model.encoder.layer[0].output.dense.weight.grad is not None
