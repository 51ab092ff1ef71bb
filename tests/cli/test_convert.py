"""`ance-fast convert`: one checkpoint in, another out, and errors of one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ance_fast import Encoder
from ance_fast.cli.main import app
from ance_fast.cli.rehearsal.checkpoints import roberta
from ance_fast.errors import AnceFastError


def convert(*arguments: object) -> str:
    """What the command prints; its error is raised."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_language_model_becomes_where_a_warm_up_starts_and_then_a_folder_for_everyone(
    tmp_path: Path,
) -> None:
    model = tmp_path / "language-model"
    roberta(model, ["one text", "another, longer text"])
    start, again, file = tmp_path / "start", tmp_path / "again", tmp_path / "model.pt"
    said = json.loads(convert(model, start, "--to", "ance", "--head", "fresh", "--seed", 7, "--json").splitlines()[-1])
    encoder = Encoder.load(str(start))
    assert said == {
        "path": str(start),
        "from": "huggingface",
        "to": "ance",
        "dim": 32,
        "parameters": sum(weights.numel() for weights in encoder.parameters()),
        "fingerprint": encoder.fingerprint(),
    }
    assert (encoder.layout.pooling, [spec.kind for spec in encoder.layout.head]) == ("cls", ["Dense", "LayerNorm"])
    convert(start, file, "--to", "seed-finetuned")
    options = ("--heads", 2, "--tokenizer", start, "--text-preset", "plain")
    said = convert(file, again, "--to", "sentence-transformers", *options)
    assert f"{again}: sentence-transformers, from seed-finetuned;" in said
    texts = ["one text", "another, longer text"]
    np.testing.assert_allclose(Encoder.load(str(again)).encode(texts), encoder.encode(texts), atol=1e-5)
    convert(start, tmp_path / "mean", "--to", "castorini", "--pooling", "mean")
    assert Encoder.load(str(tmp_path / "mean")).layout.pooling == "mean"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "onnx"), "'onnx': no known form of checkpoint; known are sentence-tr"),
        (("--to", "ance", "--from", "tf"), "'tf': no known form"),
        (("--to", "ance"), "this one's head is none (`--head fresh` starts a new one)"),
        (("--to", "ance", "--tokenizer", "."), "says its tokenizer itself"),
        (("--to", "ance", "--head", "fresh", "--pooling", "sum"), "pooling='sum': choose cls, mean"),
        (("--to", "ance", "--head", "old"), "head='old': choose keep"),
        (("--to", "sentence-transformers", "--text-preset", "new"), "text_preset='new'"),
    ],
)
def test_what_cannot_be_converted_is_said(
    tiny: Callable[..., Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AnceFastError) as caught:
        convert(tiny("Roberta", vocab_size=30530), tmp_path / "to", *options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_pickles_need_trust_and_what_is_read_is_not_overwritten(
    warm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    trap = tmp_path / "trap.pt"
    torch.save({"model": {"encoder.sentence_encoder.a": torch.zeros(1)}, "task": json.dumps}, trap)
    result = warm("-m", "ance_fast.cli.main", "convert", str(trap), str(tmp_path / "to"), "--to", "ance")
    assert result.returncode == 1
    assert result.stderr.startswith(f"ance-fast: error: {trap}: the pickle holds a Python object (json.dumps)")
    assert result.stderr.count("\n") == 1
    for options, target, message in (
        ((), trap, "is what is to be read; write somewhere else"),
        (("--trust",), tmp_path / "to", "tensors 3 missing (encoder.sentence_encoder.embed_tokens.weight"),
    ):
        with pytest.raises(AnceFastError) as caught:
            convert(trap, target, "--to", "ance", *options)
        assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trap.pt"]


def test_what_holds_the_source_is_not_replaced(tmp_path: Path) -> None:
    roberta(tmp_path / "one", ["one text"])
    Encoder.load(str(tmp_path / "one")).two_towers().save(tmp_path / "pair")
    before = sorted(path.name for path in (tmp_path / "pair").iterdir())
    with pytest.raises(AnceFastError, match="pair: holds what is to be read; write somewhere else"):
        convert(tmp_path / "pair" / "query", tmp_path / "pair", "--to", "sentence-transformers")
    assert sorted(path.name for path in (tmp_path / "pair").iterdir()) == before
    with pytest.raises(AnceFastError, match="nowhere.pt: no such folder or file"):
        convert(tmp_path / "nowhere.pt", tmp_path / "to", "--to", "ance")
