"""docs/parity.md: a row for every feature of the originals, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from ance_fast.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
FEATURES, _, SWITCHES = PAGE.partition("## Where the originals are peculiar")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PROOF = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_there_is_a_row_for_each_of_the_38_features_and_none_is_empty() -> None:
    found = rows(FEATURES)
    assert [row[0] for row in found] == [str(number) for number in range(1, 39)]
    for number, feature, here, proof in found:
        assert feature, number
        assert here, number
        # What is not there says why.
        assert here.startswith("none: ") or "`" in here or here.startswith("nothing to do: "), number
        assert PROOF.search(proof) or re.match(r"reason: (\S+ ){2}", proof), number


def test_every_switch_says_its_choice_and_its_proof() -> None:
    for released, choice, proof in rows(SWITCHES):
        assert "`" in choice or choice.startswith("none: "), released
        assert PROOF.search(proof) or proof.startswith("reason: "), released


def test_every_test_that_is_named_exists() -> None:
    named = set(PROOF.findall(PAGE))
    assert len(named) > 50
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if not re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing


def test_every_command_and_option_that_is_named_exists() -> None:
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"ance-fast ([\w-]+)", PAGE)) <= COMMANDS.keys()
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGE))
    assert named <= options, named - options
