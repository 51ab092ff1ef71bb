"""`--text-preset` on every command that makes tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ance_fast.cli.main import app
from ance_fast.errors import ConfigError
from ance_fast.models import Encoder

COMMANDS = {
    "tokenize": "tokenize DATA -m some/model -o OUT",
    "encode": "encode DATA -m some/model -o OUT",
    "index": "index DATA -m some/model -o OUT",
    "search": "search FOLDER -m some/model words",
    "mine": "mine FOLDER -m some/model -o OUT.jsonl",
    "rank": "rank FOLDER -m some/model -o OUT",
    "train": "train FOLDER -m some/model -o OUT",
}


class Loaded(Exception):
    """In place of loading an encoder."""


@pytest.fixture
def outcome(tmp_path: Path, wiki: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`outcome(command line)`: the exception it ends with; `Loaded` holds the preset that reached the encoder."""

    def load(*_: Any, text_preset: str | None = None, **__: Any) -> None:
        raise Loaded(text_preset)

    monkeypatch.setattr(Encoder, "load", load)
    (tmp_path / "data.tsv").write_text("1\ttext\n")

    def run(line: str, *more: str) -> BaseException | None:
        places = {"DATA": str(tmp_path / "data.tsv"), "FOLDER": str(wiki), "OUT": str(tmp_path / "out")}
        words = [places.get(word, word.replace("OUT", places["OUT"])) for word in line.split()]
        return CliRunner().invoke(app, [*words, *more]).exception

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_the_preset_reaches_the_encoder(command: str, outcome: Any) -> None:
    loaded = outcome(COMMANDS[command], "--text-preset", "ance,strip=false")
    assert isinstance(loaded, Loaded)
    assert loaded.args == ("ance,strip=false",)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_preset_is_refused_before_anything_is_loaded(command: str, outcome: Any) -> None:
    refused = outcome(COMMANDS[command], "--text-preset", "uncased")
    assert isinstance(refused, ConfigError)
    assert "text_preset='uncased': begin with one of ance" in str(refused)


def test_a_preset_for_embeddings_that_are_there_already_is_refused(outcome: Any) -> None:
    refused = outcome("index FOLDER -o OUT", "--text-preset", "ance")
    assert isinstance(refused, ConfigError)
    assert "goes with --model" in str(refused)
