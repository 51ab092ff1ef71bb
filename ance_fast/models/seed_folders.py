"""SEED-Encoder in transformers' form: a folder, or a tar of one, with `config.json`, weights and `vocab.txt`."""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ance_fast.artifacts import atomic_file, staged_artifact
from ance_fast.errors import ArtifactError
from ance_fast.models.ance_head import HEAD_NAMES, NO_HEAD, head_state, read_head
from ance_fast.models.encoder import KIND, Encoder
from ance_fast.models.fairseq_weights import PADDING, model_from_fairseq
from ance_fast.models.foreign import ReadOptions, notes_of, read_config, write_tokenizer
from ance_fast.models.layouts import NOTES, write_notes
from ance_fast.models.seed_checkpoints import encoder_of, fairseq_state
from ance_fast.models.state_dicts import without_prefixes
from ance_fast.models.weight_files import PICKLED, SAFETENSORS, folder_weights, plain_tensors, write_state, writing

PREFIX = "seed_encoder.encoder.sentence_encoder."
_UNUSED = ("classification_heads.", "lm_head.", "decoder.", "seed_encoder.decoder.", "seed_encoder.lm_head.")
# The compressions raise errors of their own.
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
_TARS = (".tar", ".tar.gz", ".tgz")
# What of a tar is looked at.
_FILES = (
    *("config.json", SAFETENSORS, PICKLED, "vocab.txt", NOTES),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


def is_seed_folder(path: Path, trust: bool = False) -> bool:
    """Whether `path` is a folder or a tar whose configuration is SEED-Encoder's."""
    if path.is_dir():
        return (path / "config.json").is_file() and _is_seed(read_config(path))
    if not path.is_file():
        return False
    try:
        with tarfile.open(path) as tar:
            member = _members(tar).get("config.json")
            content = tar.extractfile(member) if member is not None else None
            return content is not None and _is_seed(json.load(content))
    except (*_DAMAGED, ValueError):
        return False


def why_no_tar(path: Path) -> str | None:
    """What is wrong with the tar `path` that is no SEED-Encoder's; None for what is no tar."""
    try:
        if not tarfile.is_tarfile(path):
            return None
        with tarfile.open(path) as tar:
            tar.getmembers()
    except _DAMAGED as error:
        return f"cannot be read as a tar, it may be cut off or damaged ({error})"
    return "a tar without the config.json of a SEED-Encoder, so no known form of checkpoint"


def read_seed_folder(path: Path, options: ReadOptions) -> Encoder:
    """The encoder of a folder or tar, with its head if it has one. Raises as `read_ance` does."""
    with _opened(path) as folder:
        config = read_config(folder)
        state = without_prefixes(folder_weights(folder, trust=options.trust), ("module.",))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
        head = {name: tensor for name, tensor in state.items() if name in HEAD_NAMES}
        more = _settings(config, path)
        model, weights = model_from_fairseq(
            {name: tensor for name, tensor in state.items() if name not in head},
            path,
            prefix=PREFIX,
            heads=options.heads or config.get("encoder_attention_heads", 12),
            layers=config.get("encoder_layers", 12),
            more=more,
        )
        found = read_head(head, model.config.hidden_size, path) if head else NO_HEAD
        return encoder_of(model, weights, found, path, folder, options, notes=folder)


def is_tar_name(path: Path) -> bool:
    """Whether a tar is written to `path`, not a folder."""
    return path.name.endswith(_TARS)


def write_seed_folder(encoder: Encoder, path: Path) -> None:
    """Write a folder, or a tar where `path` ends in .tar, .tar.gz or .tgz; whole or not at all.

    Raises `ConfigError` for an encoder that fairseq's is not, or with another head than ANCE's.
    """
    body = fairseq_state(encoder, "seed-hf")
    head = head_state(encoder, "seed-hf") if encoder.layout.head else {}
    state = plain_tensors({PREFIX + name: tensor for name, tensor in body.items()} | head)
    with writing(path):
        if is_tar_name(path):
            with tempfile.TemporaryDirectory() as folder, atomic_file(path) as staging:
                _write(encoder, state, Path(folder))
                with tarfile.open(staging, "w" if path.name.endswith(".tar") else "w:gz") as tar:
                    for file in sorted(Path(folder).iterdir()):
                        tar.add(file, arcname=file.name)
        else:
            with staged_artifact(path, KIND, {"fingerprint": encoder.fingerprint(), "format": "seed-hf"}) as folder:
                _write(encoder, state, folder)


def _write(encoder: Encoder, state: dict[str, Any], folder: Path) -> None:
    config: Any = encoder.backbone.model.config
    settings = {
        "architectures": ["SEEDEncoderDot_NLL_LN" if encoder.layout.head else "SEEDEncoderForMaskedLM"],
        "model_type": "seed_encoder",
        "pad_token_id": config.pad_token_id,
        "vocab_size": config.vocab_size,
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "activation_dropout": 0.0,
        # fairseq makes room for the padding id and those before it.
        "max_positions": config.max_position_embeddings - config.pad_token_id - 1,
        "activation_fn": "gelu",
    }
    write_state(state, folder / PICKLED)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(encoder, folder)
    write_notes(folder, notes_of(encoder))


def _settings(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What config.json says that the weights do not show, for RobertaConfig. Raises `ArtifactError` for what RoBERTa
    cannot be."""
    for name, only in (("activation_fn", "gelu"), ("pad_token_id", PADDING)):
        if config.get(name, only) != only:
            raise ArtifactError(f"{path}: config.json says {name}={config[name]!r}; only {only!r} is supported")
    names = {"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}
    for name in names:
        if name in config and not (isinstance(config[name], int | float) and 0 <= config[name] < 1):
            raise ArtifactError(f"{path}: config.json says {name}={config[name]!r}, not a probability")
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def _is_seed(config: Any) -> bool:
    # The published configurations do not name their model.
    return isinstance(config, dict) and (
        config.get("model_type") == "seed_encoder" or {"encoder_embed_dim", "encoder_layers"} <= config.keys()
    )


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The plain files of the checkpoint in `tar`, which may lie in a folder of their own, by name."""
    files = [
        member
        for member in tar.getmembers()
        if member.isfile()
        and Path(member.name).name in _FILES
        and not Path(member.name).is_absolute()
        and ".." not in Path(member.name).parts
    ]
    homes = [Path(member.name).parent for member in files if Path(member.name).name == "config.json"]
    home = min(homes, key=lambda folder: len(folder.parts), default=None)
    return {Path(member.name).name: member for member in files if Path(member.name).parent == home}


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """The folder `path`, or what a tar holds of one: files that are known by name, under that name."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as unpacked:
        folder = Path(unpacked)
        try:
            with tarfile.open(path) as tar:
                for name, member in _members(tar).items():
                    content = tar.extractfile(member)
                    assert content is not None
                    with content, open(folder / name, "wb") as file:
                        shutil.copyfileobj(content, file)
        except _DAMAGED as error:
            raise ArtifactError(f"{path}: cannot be read as a tar, it may be cut off or damaged ({error})") from error
        yield folder
