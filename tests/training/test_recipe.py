"""Recipes as files: what is read, and what a mistake in one says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ance_fast.errors import ConfigError
from ance_fast.training.recipe import Recipe, read_recipe

WHOLE = """
title = "A run"
processes = 4
then = ["ance-fast evaluate {run}/dev.trec"]

[inputs]
data = "msmarco:{data}"

[train]
max_steps = 600
learning_rate = 1
batch_size = 8
gradient_accumulation_steps = 2
candidates = { bm25 = "{data}/bm25.trec" }
refresh_every = 100
metrics = ["RR@10"]

[expect]
"dev RR@10" = 0.33

[tiny]
data = "msmarco-passages"
checkpoint = "roberta"

[tiny.inputs]
model = "{data}/checkpoint"

[tiny.train]
max_steps = 4
batch_size = 2
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_settings_inputs_and_figures(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, WHOLE))
    assert (recipe.name, recipe.title, recipe.processes) == ("mine", "A run", 4)
    assert (recipe.inputs.data, recipe.inputs.model) == ("msmarco:{data}", None)
    assert recipe.expect == {"dev RR@10": 0.33}
    config = recipe.config("out", seed=7)
    assert (config.output_dir, config.max_steps, config.learning_rate, config.seed) == ("out", 600, 1, 7)
    assert config.metrics == ("RR@10",)


def test_tiny_changes_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, WHOLE), tiny=True)
    config = recipe.config("out")
    assert (config.max_steps, config.batch_size, config.gradient_accumulation_steps) == (4, 2, 2)
    assert (recipe.processes, recipe.inputs.model) == (1, "{data}/checkpoint")
    assert recipe.inputs.data == "msmarco:{data}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('titel = "x"', "mine.toml:1: unknown key titel; did you mean title?"),
        ('title = "x"\n[train]\nmax_steps = 5\nmax_step = 5', "mine.toml:4: unknown key train.max_step; did you mean"),
        ('title = "x"\n[train]\noutput_dir = "here"', "mine.toml:3: unknown key train.output_dir"),
        ('title = "x"\n[inputs]\n"corpus" = "x"', "mine.toml:3: unknown key inputs.corpus"),
        ('title = "x"\n\n[tests]\na = 1', "mine.toml:3: unknown key tests"),
        ('title = "x"\n[tiny]\n[tiny.train]\nstep = 1', "mine.toml:4: unknown key tiny.train.step"),
        ('title = "x"\n[tiny]\nseed = 1', "mine.toml:3: unknown key tiny.seed"),
        ('title = "x"\ntrain.max_step = 3', "mine.toml:2: unknown key train.max_step"),
        ('title = "x"\ntrain = { seed = 1, max_step = 3 }', "mine.toml:2: unknown key train.max_step"),
        ('title = "x"\n[train]\nmax_steps = "600k"', "mine.toml:3: train.max_steps = '600k': expected int"),
        ('title = "x"\n[train]\nmax_steps = 1.5', "mine.toml:3: train.max_steps = 1.5: expected int"),
        ('title = "x"\n[train]\nmax_steps = true', "mine.toml:3: train.max_steps = True: expected int"),
        ('title = "x"\n[train]\nmetrics = "RR@10"', "mine.toml:3: train.metrics = 'RR@10': expected tuple"),
        ('title = "x"\n[expect]\n"dev RR@10" = "good"', "mine.toml:3: expect.dev RR@10 = 'good': expected float"),
        ('title = "x"\nthen = [\n"a b",\n3]', "mine.toml:4: then has 3: expected str"),
        ('title = "x"\nfirst = "a b"', "mine.toml:2: first = 'a b': expected tuple"),
        ('title = "x"\nthen = [\n"a b",\n"a \'b"]', 'mine.toml:4: then: "a \'b": No closing quotation'),
        ('title = "x"\nthen = [" "]', "mine.toml:2: then has an empty command"),
        (
            'title = "x"\nthen = ["a {run}",\n"a {dir}"]',
            "mine.toml:3: then = 'a {dir}': unknown {dir}; {data} and {run} st",
        ),
        ('title = "x"\nfirst = ["a {run}"]', "mine.toml:2: first = 'a {run}': unknown {run}; write a path"),
        (
            'title = "x"\n[inputs]\nmodel = "{run}/a"',
            "mine.toml:3: inputs.model = '{run}/a': unknown {run}; {data} stands",
        ),
        (
            'title = "x"\n[tiny.train]\ncandidates = { a = "{dat}" }',
            "mine.toml:3: tiny.train.candidates = '{dat}': unknown",
        ),
        ('title = "x"\n[train]\nmetrics = [\n"RR@10", 10]', "mine.toml:4: train.metrics has 10: expected str"),
        ('title = "x"\n[train]\ncandidates = { a = 1 }', "mine.toml:3: train.candidates has 1: expected str"),
        ("title = 3", "mine.toml:1: title = 3: expected str"),
        ('title = "x"\nprocesses = 0', "mine.toml:2: processes = 0: must be at least 1"),
        ('title = "x"\n[train]\nloss = "triplet"', "mine.toml: loss='triplet': choose"),
        ('title = "x"\n[tiny.train]\nloss = "triplet"', "mine.toml, [tiny]: loss='triplet': choose"),
        ('title = "x"\n[train', "mine.toml: not TOML: Expected ']' at the end of a table declaration (at"),
        ('source = "x"', "mine.toml: a recipe needs a title"),
        ("title = '\xe4'", None),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path: Path, text: str, message: str | None) -> None:
    path = write(tmp_path, text)
    if message is None:
        path.write_bytes(text.encode("latin-1"))
        message = "mine.toml: not UTF-8 (invalid continuation byte at byte 9)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_recipe(path)


def test_a_recipe_that_is_not_there_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe msmarco-passage-firstpp: not found; did you mean msmarco-passage-"):
        read_recipe("msmarco-passage-firstpp")
    with pytest.raises(ConfigError, match="not found; there are .*openqa-nq.*, or give a .toml file"):
        read_recipe("xyz")
    with pytest.raises(ConfigError, match="nothing.toml: not found"):
        read_recipe(tmp_path / "nothing.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="folder.toml: Is a directory; give a .toml file, or one of the names"):
        read_recipe(tmp_path / "folder.toml")
    with pytest.raises(ConfigError, match="mine.toml: has no \\[tiny\\] part"):
        read_recipe(write(tmp_path, 'title = "x"'), tiny=True)


def test_any_number_of_processes_trains_on_the_published_batch() -> None:
    pairwise = {"loss": "pairwise", "batch_size": 8, "gradient_accumulation_steps": 2}
    recipe = Recipe("r", "r", processes=4, train=pairwise)
    for processes, settings, changes in (
        (4, (8, 2), {}),
        (1, (8, 8), {}),
        (8, (8, 1), {}),
        (1, (64, 1), {"batch_size": 64}),
        (2, (8, 3), {"gradient_accumulation_steps": 3}),
    ):
        found = recipe.batch(processes, **changes)
        assert (found["batch_size"], found["gradient_accumulation_steps"]) == settings
    with pytest.raises(ConfigError, match="a step of 64 queries cannot be divided among 3 processes with batch_size=8"):
        recipe.batch(3)


def test_a_loss_over_the_whole_batch_keeps_the_batch_instead() -> None:
    recipe = Recipe("r", "r", processes=8, train={"loss": "contrastive", "batch_size": 16})
    assert recipe.batch(1) == {"batch_size": 128, "gradient_accumulation_steps": 1}
    assert recipe.batch(4) == {"batch_size": 32, "gradient_accumulation_steps": 1}
    assert recipe.batch(4, batch_size=5) == {"batch_size": 5, "gradient_accumulation_steps": 1}
