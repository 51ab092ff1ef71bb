"""Two towers in one sentence-transformers folder: its Router module, which sends queries one way and documents another.

We write each tower as a whole folder of its own, `query/` and `document/`, that opens by itself too; the Router beside
them names their modules. What sentence-transformers writes (`query_0_Transformer/`, ...) is read as well.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ance_fast.errors import ArtifactError, ConfigError

CONFIG = "router_config.json"
ROUTES = ("query", "document")
# As "Asym" it was called before version 5.
KINDS = ("Router", "Asym")

Chain = list[tuple[str, Path]]
"""Modules one after the other: kind, as "Pooling", and folder."""


def read_routes(folder: Path) -> dict[str, Chain]:
    """The modules of "query" and of "document" of the Router in `folder`.

    Raises `ArtifactError` for a folder without its configuration or with one that is no Router's, `ConfigError` where
    texts take other routes than these two.
    """
    # Before version 5 the file was called config.json.
    path = next((folder / name for name in (CONFIG, "config.json") if (folder / name).is_file()), folder / CONFIG)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        types, structure = content["types"], content["structure"]
        routes = {
            route: [(types[name].rsplit(".", 1)[-1], folder / _inside(name)) for name in names]
            for route, names in structure.items()
        }
        mappings = content.get("parameters", {}).get("route_mappings")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing, so the checkpoint is incomplete") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not the configuration of a Router ({type(error).__name__}: {error})") from error
    if sorted(routes) != sorted(ROUTES) or mappings:
        raise ConfigError(
            f"{path}: the routes are {', '.join(sorted(routes)) or 'none'}"
            f"{' with route_mappings' if mappings else ''}; two towers are read, query and document, and no others"
        )
    return routes


def write_routes(folder: Path) -> None:
    """Join the towers that have been written to `folder`/query and `folder`/document."""
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for route in ROUTES:
        modules: list[dict[str, Any]] = json.loads((folder / route / "modules.json").read_text(encoding="utf-8"))
        structure[route] = [f"{route}/{module['path']}".rstrip("/") for module in modules]
        types |= dict(zip(structure[route], (module["type"] for module in modules), strict=True))
    router = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
    parameters = {"default_route": "document", "allow_empty_key": True}
    _write(folder / "modules.json", [router])
    _write(folder / CONFIG, {"types": types, "structure": structure, "parameters": parameters})
    # What holds for the whole, such as prompts, is read beside modules.json.
    for name in ("config_sentence_transformers.json", "ance_fast.json"):
        if (folder / "document" / name).is_file():
            shutil.copyfile(folder / "document" / name, folder / name)


def _inside(name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} lies outside the checkpoint")
    return name


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
