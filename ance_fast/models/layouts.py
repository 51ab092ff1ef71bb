"""Checkpoint folders: what is in them, read and written without loading a model.

Two layouts are understood here: a plain Hugging Face folder (`config.json`, weights, tokenizer) and a
sentence-transformers folder (`modules.json` names a chain Transformer -> Pooling -> Dense* -> LayerNorm? ->
Normalize?, or a Router of two such chains, `router_layout.py`). Encoders are always saved in the second, so that
`SentenceTransformer(path)` opens them too. Other programs' checkpoints are read by `checkpoint_formats.py`.

What a format has no place for lies beside it in `ance_fast.json`, which other programs ignore.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ance_fast.data.chunks import ChunkRules
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.router_layout import KINDS as ROUTERS
from ance_fast.models.router_layout import Chain, read_routes

NOTES = "ance_fast.json"

POOLING_NAMES = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
# What may follow pooling, and what its config.json has to say.
_WIDTHS = {"Dense": ("in_features", "out_features"), "LayerNorm": ("dimension",)}
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class HeadModule:
    """One module after pooling: `kind` is "Dense" or "LayerNorm"; `weights` is its folder (None when freshly made)."""

    kind: str
    config: dict[str, Any]
    weights: Path | None = None


@dataclass(frozen=True)
class CheckpointLayout:
    """Everything about a checkpoint except its tensors. Of two towers it is the documents', and holds the queries'.
    `chunks`: how documents are cut for it (MaxP), None: not at all."""

    transformer: Path
    pooling: str = "mean"
    head: tuple[HeadModule, ...] = ()
    normalize: bool = False
    similarity: str = "cosine"
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    max_seq_length: int | None = None
    max_query_length: int | None = None
    max_document_length: int | None = None
    lower_case: bool = False
    chunks: ChunkRules | None = None
    query: CheckpointLayout | None = None


def refuse_missing_checkpoint(name: str) -> None:
    """Raise `ArtifactError` for what can only be a path and is not there; a name may be one of the hub's."""
    # A model of the hub is NAME or OWNER/NAME.
    if not Path(name).expanduser().exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ArtifactError(f"{name}: no such folder or file (a checkpoint is one, or a Hugging Face model id)")


def resolve_checkpoint(name_or_path: str) -> Path:
    """Return the local folder or file of a checkpoint, fetching it from the Hugging Face hub when it is neither.

    Raises `ArtifactError` when there is none, or when the folder holds no `config.json` or `modules.json`, nor folders
    of towers that do.
    """
    refuse_missing_checkpoint(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        path = _download(str(name_or_path))
    if not any((path / name).is_file() for name in ("config.json", "modules.json")) and not _holds_towers(path):
        raise ArtifactError(
            f"{path}: neither config.json nor modules.json is there, so this is not an encoder checkpoint"
        )
    return path


def _holds_towers(folder: Path) -> bool:
    """Whether checkpoints lie below `folder`, as those of two towers do in some formats."""
    return len(list(folder.glob("*/config.json"))) > 1 and not list(folder.glob("*/modules.json"))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot"]))
    except Exception as error:
        raise ArtifactError(
            f"{name!r} is neither a folder nor a model that could be fetched from the Hugging Face hub: {error}"
        ) from error


def read_layout(folder: Path) -> CheckpointLayout:
    """Read the layout of `folder`. Raises `ConfigError` for modules this package cannot reproduce exactly."""
    if not (folder / "modules.json").is_file():
        return CheckpointLayout(transformer=folder, chunks=noted_chunks(folder))
    chain = _chain(folder)
    if chain and chain[0][0] in ROUTERS:
        routes = read_routes(chain[0][1])
        document, query = (_tower(folder, routes[route] + chain[1:]) for route in ("document", "query"))
        # Both routes may lead through the same modules.
        if routes["document"] == routes["query"]:
            return document
        return replace(document, query=replace(query, chunks=None))
    return _tower(folder, chain)


def _chain(folder: Path) -> Chain:
    path = folder / "modules.json"
    try:
        return [(entry["type"].rsplit(".", 1)[-1], folder / entry["path"]) for entry in _json(path)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a list of modules ({type(error).__name__}: {error})") from error


def _tower(folder: Path, chain: Chain) -> CheckpointLayout:
    """One chain of modules of the checkpoint in `folder`."""
    kinds = [kind for kind, _ in chain]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ConfigError(f"{folder}/modules.json: expected Transformer, Pooling, ...; found {', '.join(kinds)}")
    normalize = kinds[-1] == "Normalize"
    head = []
    for kind, path in chain[2 : len(chain) - normalize]:
        if kind not in _WIDTHS:
            raise ConfigError(f"{folder}/modules.json: a {kind} module after pooling is not supported")
        head.append(HeadModule(kind, _settings(path / "config.json", _WIDTHS[kind]), path))
    text = _settings(chain[0][1] / "sentence_bert_config.json", missing_ok=True)
    model = _settings(folder / "config_sentence_transformers.json", missing_ok=True)
    return CheckpointLayout(
        transformer=chain[0][1],
        pooling=_pooling_mode(chain[1][1]),
        head=tuple(head),
        normalize=normalize,
        similarity=model.get("similarity_fn_name") or "cosine",
        prompts=model.get("prompts") or {},
        default_prompt_name=model.get("default_prompt_name"),
        max_seq_length=text.get("max_seq_length"),
        max_query_length=text.get("query_length"),
        max_document_length=text.get("document_length"),
        lower_case=bool(text.get("do_lower_case", False)),
        chunks=noted_chunks(folder),
    )


def write_layout(folder: Path, layout: CheckpointLayout, hidden_size: int, dim: int) -> list[Path]:
    """Write the sentence-transformers files around the transformer; returns the folder of each head module."""
    modules: list[tuple[str, str]] = [
        ("sentence_transformers.models.Transformer", ""),
        ("sentence_transformers.models.Pooling", "1_Pooling"),
    ]
    head_folders = []
    for module in layout.head:
        name = f"{len(modules)}_{module.kind}"
        modules.append((f"sentence_transformers.models.{module.kind}", name))
        _write(folder / name / "config.json", module.config)
        head_folders.append(folder / name)
    if layout.normalize:
        name = f"{len(modules)}_Normalize"
        modules.append(("sentence_transformers.models.Normalize", name))
        (folder / name).mkdir(parents=True, exist_ok=True)
    pooling = {ours: theirs for theirs, ours in POOLING_NAMES.items()}[layout.pooling]
    flags = {key: mode == pooling for key, mode in _LEGACY_POOLING.items()}
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": hidden_size, **flags, "include_prompt": True})
    _write(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)],
    )
    text: dict[str, Any] = {"max_seq_length": layout.max_seq_length, "do_lower_case": False}
    if layout.max_query_length != layout.max_seq_length:
        text["query_length"] = layout.max_query_length
    if layout.max_document_length != layout.max_seq_length:
        text["document_length"] = layout.max_document_length
    _write(folder / "sentence_bert_config.json", text)
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": layout.prompts,
            "default_prompt_name": layout.default_prompt_name,
            "similarity_fn_name": layout.similarity,
        },
    )
    write_notes(folder, {"chunks": None if layout.chunks is None else layout.chunks.as_json()})
    return head_folders


def read_notes(folder: Path) -> dict[str, Any]:
    """What `write_notes` wrote beside a checkpoint; nothing where it did not."""
    return _settings(folder / NOTES, missing_ok=True)


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    """Write beside a checkpoint what its format has no place for; no file where there is nothing to say."""
    said = {name: value for name, value in notes.items() if value is not None}
    if said:
        _write(folder / NOTES, said)


def noted_chunks(folder: Path) -> ChunkRules | None:
    """How the checkpoint in `folder` wants documents cut. Raises `ArtifactError` for rules that are none."""
    try:
        return ChunkRules.from_json(read_notes(folder).get("chunks"))
    except (TypeError, ConfigError) as error:
        raise ArtifactError(f"{folder / NOTES}: chunks: {error}") from error


def _pooling_mode(folder: Path) -> str:
    config = _settings(folder / "config.json")
    mode = config.get("pooling_mode") or [name for key, name in _LEGACY_POOLING.items() if config.get(key)] or "mean"
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in POOLING_NAMES:
        raise ConfigError(f"{folder}/config.json: pooling {modes} is not supported (one of {', '.join(POOLING_NAMES)})")
    if config.get("include_prompt") is False:
        raise ConfigError(f"{folder}/config.json: pooling that leaves out the prompt (include_prompt) is not supported")
    return POOLING_NAMES[modes[0]]


def _settings(path: Path, widths: tuple[str, ...] = (), missing_ok: bool = False) -> dict[str, Any]:
    """The object in `path`, in which `widths` have to be numbers."""
    settings = _json(path, missing_ok)
    if not isinstance(settings, dict):
        raise ArtifactError(f"{path}: holds {type(settings).__name__}, not an object")
    for name in widths:
        width = settings.get(name)
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ArtifactError(f"{path}: {name} is {width!r}, not a width")
    return settings


def _json(path: Path, missing_ok: bool = False) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise ArtifactError(f"{path}: missing, so the checkpoint is incomplete") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from error


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
