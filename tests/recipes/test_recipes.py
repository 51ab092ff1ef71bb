"""The recipes that come with the package: what they say, and that each runs from files to measures in small."""

from __future__ import annotations

import gc
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ance_fast.cli.main import app
from ance_fast.training.recipe import FOLDER, Recipe, read_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = typer.main.get_command(app)
COMMANDS = PROGRAM.commands  # type: ignore[attr-defined]
NAMES = recipe_names()

# What was published: processes, batch, accumulation, learning rate, warm-up, steps, steps between refreshes (or
# checkpoints), query and document tokens, clip.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "msmarco-passage-warmup": (1, 32, 1, 2e-4, 1000, 60_000, 30_000, 128, 128, 1.0),
    "msmarco-passage-firstp": (4, 8, 2, 1e-6, 5000, 600_000, 10_000, 64, 512, 1.0),
    "msmarco-doc-firstp": (4, 8, 2, 5e-6, 3000, 210_000, 10_000, 64, 512, 1.0),
    "msmarco-doc-maxp": (8, 2, 8, 1e-5, 500, 139_000, 10_000, 64, 2048, 1.0),
    "openqa-nq": (8, 16, 1, 1e-5, 1000, 136_000, 1000, 256, 256, 2.0),
    "openqa-trivia": (8, 16, 1, 1e-5, 1000, 100_000, 1000, 256, 256, 2.0),
    "openqa-multi": (8, 16, 1, 1e-5, 1000, 300_000, 1000, 256, 256, 2.0),
    "dpr-nq": (8, 16, 1, 2e-5, 1237, 18_400, 460, 256, 256, 2.0),
    "seed-passage-warmup": (8, 32, 1, 2e-4, 1000, 90_000, 10_000, 128, 128, 1.0),
    "seed-passage": (4, 16, 1, 1e-6, 5000, 440_000, 10_000, 64, 512, 1.0),
    "seed-document": (4, 4, 4, 5e-6, 3000, 800_000, 10_000, 64, 512, 1.0),
    "seed-nq": (8, 32, 1, 1e-5, 1000, 300_000, 5000, 256, 256, 2.0),
}
FIGURES = {
    "msmarco-passage-warmup": [0.311],
    "msmarco-passage-firstp": [0.330, 0.959, 0.677, 0.648],
    "msmarco-doc-firstp": [0.641, 0.615, 0.373],
    "msmarco-doc-maxp": [0.671, 0.628, 0.3796, 0.9033],
    "openqa-nq": [0.819, 0.875],
    "openqa-trivia": [0.803, 0.853],
    "openqa-multi": [0.821, 0.879, 0.803, 0.852],
    "dpr-nq": [0.784, 0.854],
    "seed-passage-warmup": [0.329, 0.953],
    "seed-passage": [0.334, 0.961],
    "seed-document": [0.394],
    "seed-nq": [0.525, 0.731, 0.831, 0.887, 0.615, 0.225],
}


def test_there_is_a_recipe_for_every_published_run() -> None:
    assert set(NAMES) == PUBLISHED.keys() == FIGURES.keys()
    assert FOLDER.parent == ROOT / "ance_fast"
    assert {path.stem for path in (ROOT / "recipes").glob("*.toml")} == set(NAMES)
    assert '"recipes/*.toml"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_hyper_parameters_that_were_published(name: str) -> None:
    recipe = read_recipe(name)
    config = recipe.config("run")
    epoch = 58_880 // 128
    found = (
        recipe.processes,
        config.batch_size,
        config.gradient_accumulation_steps,
        config.learning_rate,
        config.warmup_steps,
        config.max_steps,
        config.save_steps(epoch),
        config.max_query_length,
        4 * 512 if config.chunks == "released" else config.max_document_length,
        config.max_grad_norm,
    )
    assert found == PUBLISHED[name]
    assert (config.adam_epsilon, config.weight_decay, config.lr_scheduler, config.warmup) == (1e-8, 0, "linear", "once")
    assert config.scale == 1
    assert list(recipe.expect.values()) == FIGURES[name]
    assert recipe.title
    assert recipe.source
    assert recipe.start


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dpr-nq"])
def test_all_but_dpr_train_pairwise_with_lamb_and_mine_as_published(name: str) -> None:
    config = read_recipe(name).config("run")
    assert (config.loss, config.optimizer) == ("pairwise", "lamb")
    if "warmup" in name:
        # Two epochs of 35 million triples, in steps of the published batch.
        batch = config.batch_size * read_recipe(name).processes
        assert config.schedule_steps == 35_000_000 // batch * 2
        assert config.trainer_arguments == {"fp16": True}
        return
    assert (config.start, config.refresh, config.refresh_every) == ("index", "sync", config.save_every)
    assert config.topk == 200
    if "nq" in name or "openqa" in name:
        assert config.answers
        assert (config.sampler, config.schedule_steps) == ("ance,rank_max=100", 300_000)
        # One of the negatives of a question, or with SEED-Encoder all of them.
        drawn = (config.order, config.negatives_per_query, config.triples_per_query)
        assert drawn == (("triples", 1, 100) if name == "seed-nq" else ("queries", 1, 1))
    else:
        mined = (config.order, config.query_chunks, config.triples_per_query, config.positives)
        assert mined == ("triples", 5, 20, "last")
        assert config.schedule_steps == 1_000_000


def test_dpr_trains_on_the_batch_and_one_given_negative() -> None:
    config = read_recipe("dpr-nq").config("run")
    assert (config.loss, config.optimizer, config.start, config.refresh) == ("contrastive", "adamw", "dataset", "none")
    assert (config.negatives_per_query, config.order) == (1, "queries")


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_around_a_recipe_are_commands(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.then
    for text in (*recipe.first, *recipe.then):
        program, command, *arguments = shlex.split(text)
        assert program == "ance-fast"
        COMMANDS[command].make_context(command, arguments, resilient_parsing=False)


def test_the_page_has_every_recipe_with_its_figures() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"`{name}`" in page
        assert f"--recipe {name}" in page or name.startswith(("openqa-", "dpr-"))
        for value in FIGURES[name]:
            assert f"{value:.3f}" in page, (name, value)
    # Of a conversion the page may write to another folder.
    commands = [line.split() for line in page.splitlines() if line.startswith("ance-fast convert ")]
    for name in NAMES:
        for text in read_recipe(name).first:
            words = text.split()
            assert any(line[:3] + line[4:] == words[:3] + words[4:] for line in commands), text


@pytest.fixture(scope="module")
def little_garbage() -> Iterator[None]:
    """What is imported is not searched for garbage by the trainer, which does that at the beginning of every run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_in_small_from_files_to_measures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def done(*arguments: object) -> Any:
        # In this process: twelve runs and their measures would otherwise take a minute of starting programs.
        PROGRAM.main(["--quiet", *map(str, arguments), "--json"], "ance-fast", standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    run = done("train", "--recipe", name, "--tiny", "-o", tmp_path / "run", "--data", tmp_path / "data")
    assert all(0 <= value <= 1 for value in run["dev"].values())
    recipe: Recipe = read_recipe(name, tiny=True)
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses if "loss" in entry] == list(range(1, recipe.train["max_steps"] + 1))
    # Documents that all begin alike would tie, and nothing would show what is mined.
    margins = [entry["margin"] for entry in losses if "margin" in entry]
    assert all(margins)
    assert len(margins) == (0 if recipe.train["refresh"] == "none" else 1)
    for text in run["then"]:
        assert done(*shlex.split(text)[1:])
