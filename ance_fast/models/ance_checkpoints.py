"""Checkpoint folders of microsoft/ANCE and of castorini's ports: RoBERTa, a Linear, LayerNorm, one tower.

Their weights are `roberta.*`, `embeddingHead.*` and `norm.*`, in some files below `ance_encoder.`; the pooler and the
classifier that lie beside them were never used. Names and settings: microsoft/ANCE, model/models.py (class
RobertaDot_NLL_LN), and castorini/pyserini's AnceEncoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import RobertaConfig, RobertaModel

from ance_fast.artifacts import staged_artifact
from ance_fast.errors import ConfigError
from ance_fast.models.ance_head import HEAD_NAMES, head_state, read_head
from ance_fast.models.encoder import KIND, Encoder
from ance_fast.models.fairseq_weights import PADDING
from ance_fast.models.foreign import (
    ReadOptions,
    as_float32,
    empty_model,
    foreign_layout,
    foreign_tokenizer,
    make_encoder,
    notes_of,
    read_config,
    refuse_unwritable,
    write_tokenizer,
)
from ance_fast.models.layouts import write_notes
from ance_fast.models.state_dicts import refuse_misfit, shapes_of, stripped, without_prefixes
from ance_fast.models.weight_files import (
    PICKLED,
    folder_weights,
    has_weights,
    plain_tensors,
    weight_names,
    write_state,
    writing,
)

PREFIXES = ("module.", "ance_encoder.")
# transformers 2.3.0 wrote `pad_token_id: 0` into configurations and obeyed its own RobertaEmbeddings, where it is 1.
_PADDING = {"pad_token_id": PADDING}
_UNUSED = ("roberta.pooler.", "classifier.", "lm_head.")
# A buffer of older transformers.
_BUFFERS = "roberta.embeddings.position_ids"


def is_ance(path: Path, trust: bool = False) -> bool:
    """Whether `path` is a folder of RoBERTa weights with ANCE's head."""
    if not path.is_dir() or not has_weights(path) or (path / "modules.json").exists():
        return False
    # The configurations of transformers 2.3.0 do not name their model.
    if read_config(path).get("model_type", "roberta") != "roberta":
        return False
    names = set(stripped(weight_names(path, trust=trust), PREFIXES).values())
    return any(name in names for name in HEAD_NAMES) and any(name.startswith("roberta.") for name in names)


def is_castorini(path: Path, trust: bool = False) -> bool:
    """Whether `path` is such a folder for castorini's AnceEncoder."""
    return path.is_dir() and read_config(path).get("architectures") == ["AnceEncoder"] and is_ance(path, trust)


def read_ance(folder: Path, options: ReadOptions) -> Encoder:
    """The encoder of a folder of microsoft/ANCE or castorini: first token, head, LayerNorm, inner product.

    Raises `ArtifactError` for weights that lack tensors, hold unknown ones or ones of other shapes (named), for a head
    whose widths do not fit, and for files that cannot be read.
    """
    model = empty_model(RobertaModel, RobertaConfig, read_config(folder) | _PADDING, folder)
    state = without_prefixes(folder_weights(folder, trust=options.trust), PREFIXES)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED) and name != _BUFFERS}
    body = {name: tensor for name, tensor in state.items() if name not in HEAD_NAMES}
    refuse_misfit(body, {f"roberta.{name}": shape for name, shape in shapes_of(model.state_dict()).items()}, folder)
    specs, head = read_head(state, int(model.config.hidden_size), folder)
    tokenizer = foreign_tokenizer(folder, "roberta", options, "ance")
    weights = {name.removeprefix("roberta."): tensor for name, tensor in body.items()}
    return make_encoder(model, weights, head, tokenizer, foreign_layout(folder, tokenizer, folder, specs))


def write_ance(encoder: Encoder, path: Path) -> None:
    """Write a folder that microsoft/ANCE's `RobertaDot_NLL_LN.from_pretrained` reads; whole or not at all.

    Raises `ConfigError` for an encoder that is no RoBERTa with ANCE's head.
    """
    _write(encoder, path, "ance", {"architectures": ["RobertaDot_NLL_LN"], "finetuning_task": "msmarco"})


def write_castorini(encoder: Encoder, path: Path) -> None:
    """Write a folder that castorini's `AnceEncoder.from_pretrained` reads. Raises as `write_ance` does."""
    _write(encoder, path, "castorini", {"architectures": ["AnceEncoder"]})


def _write(encoder: Encoder, path: Path, form: str, settings: dict[str, Any]) -> None:
    refuse_unwritable(encoder, form, pooling=("cls", "mean"))
    model = encoder.backbone.model
    if type(model).__name__ != "RobertaModel":
        raise ConfigError(f"{form} holds RoBERTa encoders; this one is a {type(model).__name__}")
    state = plain_tensors({f"roberta.{name}": tensor for name, tensor in as_float32(encoder).items()})
    state.update(plain_tensors(head_state(encoder, form)))
    if model.config.pad_token_id != PADDING:
        raise ConfigError(
            f"{form} has no place for this encoder: it has the padding id {model.config.pad_token_id}, there it is "
            f"{PADDING}, and positions follow from it"
        )
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ != "BPE":
        raise ConfigError(
            f"{form} has no place for this encoder: its tokenizer is not RoBERTa's, a byte-level BPE; write "
            "sentence-transformers instead"
        )
    config = model.config.to_dict() | settings
    # What only a newer transformers understands, or is about how the model runs.
    for name in ("dtype", "torch_dtype", "transformers_version"):
        config.pop(name, None)
    manifest = {"fingerprint": encoder.fingerprint(), "format": form}
    with writing(path), staged_artifact(path, KIND, manifest) as folder:
        write_state(state, folder / PICKLED)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(encoder, folder)
        write_notes(folder, notes_of(encoder))
