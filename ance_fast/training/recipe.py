"""Recipes: a published run as a TOML file, read without running anything.

A recipe has these parts, none of them required but `title`:

    title = "..."; source = "where its numbers are from"; start = "what it starts from, in words"
    first = ["ance-fast ..."] # how that is made
    processes = 4             # how many the batch below is for
    then = ["ance-fast ..."]  # how it is measured; {data} and {run} stand for the two folders
    [inputs]                  # what is read: the fields of `Inputs`
    [train]                   # fields of `AnceConfig`
    [expect]                  # measure = the published figure
    [tiny]                    # a rehearsal on generated data: `data` and `checkpoint` name what is generated,
    [tiny.inputs]             # the tables are changes
    [tiny.train]

`{data}` in any text of `inputs` and `train` stands for the folder with the downloads. A file `{data}/NAME` there may be
plain, `.gz` or `.zst`, whichever of them the recipe writes.
"""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ance_fast.errors import ConfigError
from ance_fast.training.config import AnceConfig

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
"""Where the recipes of this package are."""

DATA, RUN = "{data}", "{run}"
"""In a recipe's texts: the folder with the downloads, and that of the run."""

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (),
    "tuple": (list,),
    "dict": (dict,),
}


@dataclass(frozen=True)
class Inputs:
    """What a run reads, each as `ance-fast train` takes it."""

    data: str | None = None
    split: str = "train"
    dev_split: str | None = None
    test_split: str | None = None
    model: str | None = None
    text_preset: str | None = None
    dev_data: str | None = None
    two_towers: bool | None = None


@dataclass(frozen=True)
class Rehearsal:
    """What `--tiny` generates: `data` and `checkpoint` name generators."""

    data: str = ""
    checkpoint: str = ""


@dataclass(frozen=True)
class Recipe:
    """A published run. `train` holds fields of `AnceConfig`, `expect` the published figures by measure."""

    name: str
    title: str
    source: str = ""
    start: str = ""
    processes: int = 1
    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    inputs: Inputs = field(default_factory=Inputs)
    train: dict[str, Any] = field(default_factory=dict)
    expect: dict[str, float] = field(default_factory=dict)
    rehearsal: Rehearsal | None = None

    def config(self, output_dir: str, **changes: Any) -> AnceConfig:
        """The settings of the run, with `changes`. Raises `ConfigError` for what cannot hold."""
        return AnceConfig(**{"output_dir": output_dir, **self.train, **changes})

    def batch(self, processes: int, **changes: Any) -> dict[str, int]:
        """`batch_size` and `gradient_accumulation_steps` with which so many processes train on the published number of
        queries a step. `changes` are settings that the caller insists on: values of the two, another `loss`.

        The pairwise loss of a step does not depend on how its batch is cut, so accumulation gives way; the contrastive
        loss counts the other passages of the batch, so there the batch does. Raises `ConfigError` where it does not
        come out even.
        """
        settings = AnceConfig(**{"output_dir": "", **self.train, **changes})
        asked = AnceConfig(**{"output_dir": "", **self.train})
        total = asked.batch_size * asked.gradient_accumulation_steps * self.processes
        given = {"batch_size": settings.batch_size, "gradient_accumulation_steps": settings.gradient_accumulation_steps}
        yields = "batch_size" if settings.loss == "contrastive" else "gradient_accumulation_steps"
        if yields in changes:
            return given
        (kept,) = given.keys() - {yields}
        parts = given[kept] * processes
        if total % parts:
            raise ConfigError(
                f"recipe {self.name}: a step of {total} queries cannot be divided among {processes} processes with "
                f"{kept}={given[kept]}; give {yields} too, or another number of processes"
            )
        return {**given, yields: total // parts}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str | Path, *, tiny: bool = False) -> Recipe:
    """The recipe of that name, or in that file (`.toml`). `tiny` applies the changes of its rehearsal.

    Raises `ConfigError`: no such recipe, no TOML, a key that is not known or of another type (with file and line),
    settings that contradict each other, `tiny` of a recipe without.
    """
    text = recipe_text(name)
    path = _path(name)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return _Source(path, text).recipe(content, tiny=tiny)


def recipe_text(name: str | Path) -> str:
    """The file of the recipe of that name, or that file (`.toml`), as it stands. Raises `ConfigError`."""
    path = _path(name)
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(str(name), recipe_names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(recipe_names())}, or give a .toml file"
        raise ConfigError(f"recipe {name}: not found; {hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"recipe {path}: {error.strerror}; give a .toml file, or one of the names") from error


def _path(name: str | Path) -> Path:
    return Path(name) if Path(name).suffix == ".toml" else FOLDER / f"{name}.toml"


@dataclass(frozen=True)
class _Source:
    path: Path
    text: str

    def recipe(self, content: dict[str, Any], *, tiny: bool) -> Recipe:
        changes = content.pop("tiny", None)
        known = {
            **dict.fromkeys(("title", "source", "start"), "str"),
            "processes": "int",
            **dict.fromkeys(("first", "then"), "tuple[str, ...]"),
            **dict.fromkeys(("inputs", "train", "expect"), "dict"),
        }
        self._check(content, known, ())
        if "title" not in content:
            raise ConfigError(f"{self.path}: a recipe needs a title")
        inputs, train = dict(content.get("inputs", {})), dict(content.get("train", {}))
        self._check_tables(inputs, train, ())
        for key, known_words in (("first", ()), ("then", (DATA, RUN))):
            for command in content.get(key, ()):
                self._check_command(command, known_words, key)
        expect = content.get("expect", {})
        self._check(expect, dict.fromkeys(expect, "float"), ("expect",))
        rehearsal = None
        if changes is not None:
            self._check(changes, {"data": "str", "checkpoint": "str", "inputs": "dict", "train": "dict"}, ("tiny",))
            smaller = changes.pop("inputs", {}), changes.pop("train", {})
            self._check_tables(*smaller, ("tiny",))
            rehearsal = Rehearsal(**changes)
            self._check_settings({**train, **smaller[1]}, ", [tiny]")
            if tiny:
                inputs, train = {**inputs, **smaller[0]}, {**train, **smaller[1]}
        elif tiny:
            raise ConfigError(f"{self.path}: has no [tiny] part")
        rest = {key: content[key] for key in ("title", "source", "start") if key in content}
        processes = 1 if tiny else content.get("processes", 1)
        if processes < 1:
            raise ConfigError(f"{self._place('processes', ())}: processes = {processes}: must be at least 1")
        made = Recipe(
            self.path.stem,
            **rest,
            processes=processes,
            first=tuple(content.get("first", ())),
            then=tuple(content.get("then", ())),
            inputs=Inputs(**inputs),
            train=train,
            expect=expect,
            rehearsal=rehearsal,
        )
        self._check_settings(made.train, "")
        return made

    def _check_settings(self, train: dict[str, Any], part: str) -> None:
        try:
            AnceConfig(**{"output_dir": "", **train})
        except ConfigError as error:
            raise ConfigError(f"{self.path}{part}: {error}") from error

    def _check_tables(self, inputs: dict[str, Any], train: dict[str, Any], above: tuple[str, ...]) -> None:
        self._check(inputs, _kinds(Inputs), (*above, "inputs"))
        self._check(train, {**_kinds(AnceConfig), "output_dir": ""}, (*above, "train"))

        for table, values in (("inputs", inputs), ("train", train)):
            for key, value in values.items():
                self._check_words(value, (DATA,), (*above, table, key))

    def _check_command(self, command: str, known: tuple[str, ...], key: str) -> None:
        # Else found out when the run that it belongs to is at its end.
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"{self._line(key, (), command)}: {key}: {command!r}: {error}") from error
        if not words:
            raise ConfigError(f"{self._line(key, (), command)}: {key} has an empty command")
        self._check_words(command, known, (key,))

    def _check_words(self, value: Any, known: tuple[str, ...], name: tuple[str, ...]) -> None:
        for text in _texts(value):
            for word in re.findall(r"\{\w*\}", text):
                if word not in known:
                    place, stand = self._line(name[-1], name[:-1], text), " and ".join(known)
                    hint = f"{stand} stand for folders" if len(known) > 1 else f"{stand} stands for a folder"
                    raise ConfigError(
                        f"{place}: {'.'.join(name)} = {text!r}: unknown {word}; {hint if known else 'write a path'}"
                    )

    def _check(self, table: dict[str, Any], known: dict[str, str], name: tuple[str, ...]) -> None:
        for key, value in table.items():
            place, full = self._place(key, name), ".".join((*name, key))
            if not known.get(key):
                near = difflib.get_close_matches(key, known, 1)
                all_known = ", ".join(sorted(filter(known.get, known)))
                hint = f"did you mean {near[0]}?" if near else f"known are {all_known}"
                raise ConfigError(f"{place}: unknown key {full}; {hint}")
            if not _fits(value, known[key]):
                raise ConfigError(f"{place}: {full} = {value!r}: expected {known[key]}")
            for element in _elements(value):
                if not _fits(element, kind := _element_kind(known[key])):
                    place = self._line(key, name, str(element))
                    raise ConfigError(f"{place}: {full} has {element!r}: expected {kind}")

    def _line(self, key: str, table: tuple[str, ...], text: str) -> str:
        """FILE:LINE of a text within what a key has, or else of the key."""
        place = self._place(key, table)
        _, _, first = place[len(str(self.path)) :].partition(":")
        for number, line in enumerate(self.text.splitlines()[int(first or 1) - 1 :], int(first or 1)):
            if text in line:
                return f"{self.path}:{number}"
        return place

    def _place(self, key: str, table: tuple[str, ...]) -> str:
        """FILE:LINE of a key, of its table where it is written within another line, or else the file alone."""
        wanted = (*table, key)
        inside: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), 1):
            header = re.match(r"\s*\[([^\[\]]+)\]", line)
            written = re.match(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([\w.-]+))\s*=", line)
            if header:
                inside = tuple(part.strip().strip("\"'") for part in header[1].split("."))
                found: tuple[str, ...] = inside
            elif written:
                quoted = written[1] if written[1] is not None else written[2]
                found = (*inside, *(written[3].split(".") if quoted is None else (quoted,)))
            else:
                continue
            if found[: len(wanted)] == wanted:
                return f"{self.path}:{number}"
        return self._place(table[-1], table[:-1]) if table else str(self.path)


def _kinds(cls: type) -> dict[str, str]:
    return {item.name: str(item.type) for item in fields(cls)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for element in _elements(value):
        yield from _texts(element)


def _elements(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _element_kind(kind: str) -> str:
    """ "str" of "tuple[str, ...]" and "dict[str, str]"; anything of a type that says nothing about its elements."""
    inside = re.search(r"tuple\[(\w+), \.\.\.\]|dict\[\w+, (\w+)\]", kind)
    return (inside[1] or inside[2]) if inside else "Any"


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of TOML is one of the types that an annotation such as "int | None" names."""
    names = [re.match(r"\w+", part.strip()) for part in re.sub(r"\[.*?\]", "", kind).split("|")]
    allowed = tuple(found for name in names if name for found in _TYPES.get(name[0], (object,)))
    if isinstance(value, bool):
        return bool in allowed or object in allowed
    return isinstance(value, allowed)
