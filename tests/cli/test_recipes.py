"""`ance-fast train --recipe` and `ance-fast recipes`, with a recipe of the test's own."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from ance_fast.cli.main import app
from ance_fast.cli.recipes import chosen_recipe
from ance_fast.cli.rehearsal import rehearse
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.training.recipe import Rehearsal

Run = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """
title = "A run"
start = "somebody's checkpoint"
first = ["ance-fast convert a b"]
processes = 4
then = ["ance-fast evaluate {run}/dev.trec -q {data}/qrels.dev.small.tsv"]

[inputs]
data = "msmarco:{data}"
dev_split = "dev"

[train]
max_steps = 600
learning_rate = 1e-3
batch_size = 8
gradient_accumulation_steps = 2
loss = "pairwise"
start = "random"
refresh = "none"
metrics = ["RR@10"]
trainer_arguments = { adam_beta2 = 0.99 }

[expect]
"dev RR@10" = 0.33

[tiny]
data = "msmarco-passages"
checkpoint = "roberta"

[tiny.inputs]
model = "{data}/checkpoint"

[tiny.train]
max_steps = 2
max_query_length = 20
max_document_length = 32
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def run(warm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def ended(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        result = warm("-m", "ance_fast.cli.main", *arguments)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return ended


def test_a_rehearsal_needs_nothing_and_what_is_typed_wins(run: Run, recipe: Path, tmp_path: Path) -> None:
    typed = ("train", "--recipe", recipe, "--tiny", "--batch-size", 4, "--lr", 0.002)
    result = json.loads(run(*typed, "--json").stdout.splitlines()[-1])
    assert result["output"] == "mine-tiny"
    assert set(result["dev"]) == {"RR@10"}
    assert "expect" not in result
    data = tmp_path / "mine-tiny-data"
    assert result["then"] == ["ance-fast evaluate mine-tiny/dev.trec -q mine-tiny-data/qrels.dev.small.tsv"]
    settings = json.loads((tmp_path / "mine-tiny" / "config.json").read_text())["settings"]
    wanted = {"max_steps": 2, "batch_size": 4, "gradient_accumulation_steps": 4, "learning_rate": 0.002}
    assert {key: settings[key] for key in wanted} == wanted
    assert (settings["loss"], settings["trainer_arguments"]) == ("pairwise", {"adam_beta2": 0.99})
    before = (data / "collection.tsv").stat().st_mtime_ns
    run("train", "--recipe", recipe, "--tiny", "-o", "again", "--data", data, "--max-steps", 1)
    assert (data / "collection.tsv").stat().st_mtime_ns == before
    (data / "collection.tsv").unlink()
    assert "collection.tsv: " in run("train", "--recipe", recipe, "--tiny", "--data", data, status=1).stderr
    recipe.write_text(RECIPE.replace("msmarco-passages", "dpr-questions"), encoding="utf-8")
    other = run("train", "--recipe", recipe, "--tiny", "--data", tmp_path, status=1)
    assert f"{tmp_path}: holds something else than this rehearsal's data" in other.stderr


def test_what_a_recipe_lacks_is_asked_for(run: Run, recipe: Path) -> None:
    asked = run("train", "--recipe", recipe, "--data", "x", status=2).stderr
    assert "recipe mine starts from somebody's checkpoint: give it with -m, made by\n  ance-fast convert a b" in asked
    asked = run("train", "--recipe", recipe, "-m", "x", status=2).stderr
    assert "the recipe reads msmarco:{data} (data): give the folder with --data DIR" in asked
    assert "--tiny are for --recipe NAME" in run("train", "x", "-m", "y", "-o", "z", "--tiny", status=2).stderr
    assert "not found; did you mean" in run("train", "--recipe", "openqa-nqq", status=2).stderr
    assert "x: no such folder" in run("train", "--recipe", recipe, "--data", "x", "-m", "y", status=1).stderr
    assert "Missing argument" in run("train", status=2).stderr


def test_recipes_are_listed_and_shown(run: Run, recipe: Path) -> None:
    shown = run("recipes", recipe).stdout
    for line in ("A run", "Starts from: somebody's checkpoint", "Before it: ance-fast convert a b", "After it: ance"):
        assert line in shown
    assert run("recipes", recipe, "--toml").stdout == RECIPE
    assert "--toml prints the file of one recipe" in run("recipes", "--toml", status=2).stderr
    listed = run("recipes").stdout
    assert "msmarco-passage-firstp" in listed
    found = json.loads(run("recipes", "--json").stdout)
    assert "openqa-nq" in {each["name"] for each in found}
    assert all(each["title"] and each["source"] and each["start"] and each["expect"] for each in found)


def test_files_of_the_folder_have_the_endings_that_they_have_there(tmp_path: Path) -> None:
    there = ("triples.train.small.tsv.zst", "top1000.dev.gz", "qrels.dev.small.tsv", "msmarco-docdev-qrels.tsv")
    for name in there:
        (tmp_path / name).touch()
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]

    def asked(name: str) -> typer.Context:
        found: typer.Context = train.make_context("train", ["--recipe", name, "--data", str(tmp_path), "-m", "start"])
        return found

    context = asked("msmarco-passage-warmup")
    assert context.params["data"] == f"triples:{tmp_path}/triples.train.small.tsv.zst"
    assert context.params["dev_data"] == f"msmarco:{tmp_path}"
    assert context.params["dev_candidates"] == tmp_path / "top1000.dev.gz"
    documents = chosen_recipe(asked("msmarco-doc-firstp"))
    assert documents is not None
    words = [word for command in documents.then(Path("run")) for word in shlex.split(command)]
    assert f"{tmp_path}/msmarco-docdev-qrels.tsv" in words
    assert f"{tmp_path}/msmarco-docdev-qrels.tsv.gz" not in words
    # What is not there at all keeps the name that the recipe gives it.
    assert f"{tmp_path}/2019qrels-docs.txt" in words
    assert "run/dev.trec" in words


def test_a_rehearsal_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match="is empty; a rehearsal makes its folder: remove it, or give another --data"
    ):
        rehearse(Rehearsal("msmarco-passages", "roberta"), tmp_path)


@pytest.mark.parametrize(
    ("processes", "arguments", "batch"),
    [
        (1, ("msmarco-passage-firstp",), (8, 8)),
        (4, ("msmarco-passage-firstp",), (8, 2)),
        (1, ("msmarco-passage-firstp", "--batch-size", "64"), (64, 1)),
        (2, ("msmarco-passage-firstp", "--gradient-accumulation", "3"), (8, 3)),
        (1, ("dpr-nq",), (128, 1)),
        (8, ("dpr-nq",), (16, 1)),
        (4, ("msmarco-doc-maxp",), (2, 16)),
        (4, ("openqa-nq", "--loss", "contrastive"), (32, 1)),
    ],
)
def test_torchruns_processes_share_the_published_batch(
    processes: int, arguments: tuple[str, ...], batch: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    asked = ["--recipe", *arguments, "--data", "some where", "-m", "start"]
    context = typer.main.get_command(app).commands["train"].make_context("train", asked)  # type: ignore[attr-defined]
    assert (context.params["batch_size"], context.params["gradient_accumulation"]) == batch
    assert context.params["model"] == "start"
    assert "some where" in context.params["data"]
    chosen = chosen_recipe(context)
    assert chosen is not None
    assert any("some where" in word for word in shlex.split(chosen.then(Path("run"))[0]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--tiny rehearses in one process"):
        typer.main.get_command(app).commands["train"].make_context("train", ["--recipe", arguments[0], "--tiny"])  # type: ignore[attr-defined]
