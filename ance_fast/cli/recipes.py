"""`--recipe`: a recipe's settings become the defaults of a command's options, so that what is typed wins."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from ance_fast.errors import ConfigError
from ance_fast.training.recipe import DATA, RUN, Recipe, read_recipe

_KEY = "ance_fast.recipe"
_OPTIONS = {"gradient_accumulation_steps": "gradient_accumulation", "negatives_per_query": "negatives"}
"""Fields of `AnceConfig` -> options of `ance-fast train` that have another name."""


@dataclass(frozen=True)
class Chosen:
    """The recipe of a command: `settings` are fields of `AnceConfig` for which the command has no option."""

    recipe: Recipe
    data: Path | None
    tiny: bool
    settings: dict[str, Any]

    def prepare(self) -> None:
        """Make what a rehearsal reads, unless it is there."""
        if self.tiny:
            from ance_fast.cli.rehearsal import rehearse

            assert self.data is not None
            assert self.recipe.rehearsal is not None
            rehearse(self.recipe.rehearsal, self.data)

    def then(self, run: Path) -> list[str]:
        """The commands that measure the run as it was published."""

        def filled(word: str) -> str:
            return _filled(word, str(self.data or "DATA"), str(run))

        return [shlex.join(map(filled, shlex.split(command))) for command in self.recipe.then]


class RecipeCommand(TyperCommand):
    """A command with the options `--recipe`, `--tiny`, `--data` (called `data_folder`) and `--output`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = {name: value for name, value in self.make_parser(ctx).parse_args(list(args))[0].items() if value}
        name = typed.get("recipe")
        if name and not typed.get("help"):
            chosen, defaults = _choose(name, typed, {parameter.name for parameter in self.params})
            ctx.default_map = {**(ctx.default_map or {}), **defaults}
            ctx.meta[_KEY] = chosen
        return super().parse_args(ctx, args)


def chosen_recipe(context: typer.Context) -> Chosen | None:
    """The recipe that was named when the command was called, or None."""
    found: Chosen | None = context.meta.get(_KEY)
    return found


def _choose(name: str, typed: dict[str, Any], options: set[str | None]) -> tuple[Chosen, dict[str, Any]]:
    """The recipe, and the defaults it gives the command's `options`. `typed`: what was given, by option."""
    tiny = bool(typed.get("tiny"))
    recipe = read_recipe(name, tiny=tiny)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if tiny and processes > 1:
        raise ConfigError("--tiny rehearses in one process; start it without torchrun")
    output = str(typed.get("output") or f"{recipe.name}{'-tiny' if tiny else ''}")
    folder = typed.get("data_folder") or (f"{output}-data" if tiny else None)
    defaults = {key: value for key, value in asdict(recipe.inputs).items() if value is not None}
    asked: dict[str, Any] = {
        field: int(typed[option])
        for field in ("batch_size", "gradient_accumulation_steps")
        if str(typed.get(option := _OPTIONS.get(field, field), "")).isdigit()
    }
    # What gives way to another number of processes, the batch or the accumulation, depends on the loss.
    if typed.get("loss"):
        asked["loss"] = typed["loss"]
    defaults |= {**recipe.train, **recipe.batch(processes, **asked), "output": output}
    defaults = {_OPTIONS.get(key, key): _with_folder(value, folder, key) for key, value in defaults.items()}
    if "candidates" in defaults:
        defaults["candidates"] = [f"{key}={file}" for key, file in defaults["candidates"].items()]
    if "model" not in defaults and not typed.get("model"):
        origin = recipe.start or "a checkpoint of yours"
        made = "".join(f"\n  {command}" for command in recipe.first)
        how = f", made by{made}" if made else ""
        raise ConfigError(f"recipe {recipe.name} starts from {origin}: give it with -m{how}")
    settings = {key: defaults.pop(key) for key in list(defaults) if key not in options}
    return Chosen(recipe, Path(folder) if folder else None, tiny, settings), defaults


def _with_folder(value: Any, folder: str | None, key: str) -> Any:
    """`value` with `folder` for "{data}" in every text."""
    if isinstance(value, dict):
        return {name: _with_folder(item, folder, key) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_folder(item, folder, key) for item in value]
    if not isinstance(value, str) or DATA not in value:
        return value
    if folder is None:
        raise ConfigError(f"the recipe reads {value} ({key}): give the folder with --data DIR")
    return _filled(value, str(folder))


def _filled(text: str, data: str, run: str = RUN) -> str:
    """`text` with the folders for "{data}" and "{run}". A file of `data` has the ending that it has there."""
    from ance_fast.data.input_files import find_file, has_file, plain_name

    def found(match: re.Match[str]) -> str:
        if match[0] == RUN:
            return run
        name = match[1]
        if name and not Path(data, name).exists() and has_file(data, name, plain_name(name)):
            return str(find_file(data, name, plain_name(name)))
        return f"{data}/{name}" if name else data

    return re.sub(rf"{re.escape(DATA)}(?:/([^?]+))?|{re.escape(RUN)}", found, text)
