"""DPR in transformers: a folder of a `DPRQuestionEncoder` or `DPRContextEncoder`, or a folder with both below it.

facebook's and castorini's checkpoints are two folders, one for each tower. Each is read as an encoder by itself, and
`Encoder.pair` joins two; a folder that holds both is read as the pair. Source of the names: transformers,
models/dpr/modeling_dpr.py.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ance_fast.artifacts import staged_artifact
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.dpr_towers import PROJECTION, alone, bert_tower, tower_state
from ance_fast.models.encoder import KIND, Encoder
from ance_fast.models.foreign import ReadOptions, foreign_tokenizer, notes_of, read_config, write_tokenizer
from ance_fast.models.layouts import write_notes
from ance_fast.models.state_dicts import without_prefixes
from ance_fast.models.weight_files import PICKLED, folder_weights, plain_tensors, write_state, writing

# Of each tower: the class, what it puts before the names of its tensors, and the folder that we write.
CLASSES = {"query": "DPRQuestionEncoder", "document": "DPRContextEncoder"}
PREFIXES = {"query": "question_encoder.", "document": "ctx_encoder."}
FOLDERS = {"query": "question_encoder", "document": "ctx_encoder"}
_BERT = "bert_model."


def is_dpr_folder(path: Path, trust: bool = False) -> bool:
    """Whether `path` is the folder of a tower, or holds those of both."""
    return path.is_dir() and not (path / "modules.json").exists() and (_role(path) is not None or bool(_children(path)))


def read_dpr_folder(folder: Path, options: ReadOptions) -> Encoder:
    """One tower, or two where `folder` holds both: BERT, first token, a projection where there is one, inner product.

    Raises `ArtifactError` for weights that lack tensors, hold unknown ones or ones of other shapes (named), and
    `ConfigError` for a folder with several encoders of one kind.
    """
    role = _role(folder)
    if role is not None:
        return _read_tower(folder, role, options)
    children = _children(folder)
    if set(children) != set(CLASSES):
        raise ArtifactError(f"{folder}: neither a DPR encoder nor a folder with the two of a question and a context")
    return Encoder.pair(*(_read_tower(children[role], role, options) for role in ("query", "document")))


def write_dpr_folder(encoder: Encoder, path: Path) -> None:
    """Write `question_encoder/` and `ctx_encoder/`, which transformers' DPR classes open; whole or not at all.

    Raises `ConfigError` for towers that are not BERT's first token with at most a projection behind it.
    """
    towers = {"query": encoder.for_queries, "document": alone(encoder)}
    states = {role: tower_state(tower, "dpr-hf") for role, tower in towers.items()}
    manifest = {"fingerprint": encoder.fingerprint(), "format": "dpr-hf"}
    with writing(path), staged_artifact(path, KIND, manifest) as staging:
        for role, tower in towers.items():
            (body, projection), folder, prefix = states[role], staging / FOLDERS[role], PREFIXES[role]
            folder.mkdir()
            named = {f"{prefix}{_BERT}{name}": tensor for name, tensor in body.items()}
            named |= {f"{prefix}{PROJECTION}.{name}": tensor for name, tensor in projection.items()}
            write_state(plain_tensors(named), folder / PICKLED)
            config = _config(tower, role, len(projection["weight"]) if projection else 0)
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            write_tokenizer(tower, folder)
            write_notes(folder, notes_of(tower))


def _read_tower(folder: Path, role: str, options: ReadOptions) -> Encoder:
    settings = {
        name: value for name, value in read_config(folder).items() if name not in ("model_type", "architectures")
    }
    state = without_prefixes(folder_weights(folder, trust=options.trust), ("module.", PREFIXES[role]))
    prefix = f"{PROJECTION}."
    body = {name.removeprefix(_BERT): tensor for name, tensor in state.items() if not name.startswith(prefix)}
    projection = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if bool(settings.pop("projection_dim", 0)) != bool(projection):
        held = "hold one" if projection else "hold none"
        raise ArtifactError(
            f"{folder}: config.json's projection_dim and the weights, which {held} ({PROJECTION}.*), disagree"
        )
    tokenizer = foreign_tokenizer(folder, "bert", options, "dpr")
    names = (PREFIXES[role] + _BERT, PREFIXES[role] + PROJECTION)
    return bert_tower(body, settings, projection, names, tokenizer, folder)


def _config(tower: Encoder, role: str, projection: int) -> dict[str, Any]:
    config = tower.backbone.model.config.to_dict()
    for name in ("dtype", "torch_dtype", "transformers_version", "add_cross_attention", "is_decoder"):
        config.pop(name, None)
    return config | {"model_type": "dpr", "architectures": [CLASSES[role]], "projection_dim": projection}


def _role(folder: Path) -> str | None:
    """Which tower `folder` is: "query", "document", or None for what is neither."""
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder)
    if config.get("model_type") != "dpr":
        return None
    named = config.get("architectures") or []
    found = [role for role, name in CLASSES.items() if name in named]
    if not found:
        raise ArtifactError(
            f"{folder}/config.json: a DPR model that is neither {' nor '.join(CLASSES.values())} "
            f"({', '.join(map(str, named)) or 'architectures is missing'})"
        )
    return found[0]


def _children(folder: Path) -> dict[str, Path]:
    """The folders of the towers below `folder`."""
    found: dict[str, Path] = {}
    for config in sorted(folder.glob("*/config.json")):
        # Other things lie there too: a reader, a folder of runs.
        role = None
        with suppress(ArtifactError):
            role = _role(config.parent)
        if role in found:
            raise ConfigError(f"{folder}: {found[role].name} and {config.parent.name} are both {CLASSES[role]}s")
        if role is not None:
            found[role] = config.parent
    return found
