"""ance-fast recipes"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ance_fast.cli.output import print_json, print_table
from ance_fast.errors import ConfigError
from ance_fast.training.recipe import Recipe, read_recipe, recipe_names, recipe_text


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one: a name, or a .toml file.")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print its file, to change a copy.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on the last line.")] = False,
) -> None:
    """List the published runs that `ance-fast train --recipe` repeats, or show one.

    Example: ance-fast recipes msmarco-passage-firstp

    A copy to change: ance-fast recipes msmarco-passage-firstp --toml > mine.toml
    """
    if toml and (json or not name):
        raise ConfigError("--toml prints the file of one recipe: give its NAME, and no --json")
    if toml:
        assert name is not None
        typer.echo(recipe_text(name), nl=False)
        return
    found = [read_recipe(each) for each in ([name] if name else recipe_names())]
    if json:
        print_json([asdict(recipe) for recipe in found])
    elif name:
        _show(found[0])
    else:
        print_table(("recipe", "what", "starts from"), [(each.name, each.title, each.start) for each in found])
        typer.echo(
            "ance-fast recipes NAME shows one; ance-fast train --recipe NAME --data DIR runs it, --tiny rehearses."
        )


def _show(recipe: Recipe) -> None:
    typer.echo(f"{recipe.title}\nSource: {recipe.source}\nStarts from: {recipe.start}")
    inputs = {key: value for key, value in asdict(recipe.inputs).items() if value is not None}
    rows = [(key, str(value)) for key, value in {**inputs, **recipe.train}.items()]
    print_table(("setting", recipe.name), [*rows, ("processes", str(recipe.processes))])
    if recipe.expect:
        print_table(("published", "figure"), [(key, f"{value:g}") for key, value in recipe.expect.items()])
    for what, commands in (("Before it", recipe.first), ("After it", recipe.then)):
        for command in commands:
            typer.echo(f"{what}: {command}")
