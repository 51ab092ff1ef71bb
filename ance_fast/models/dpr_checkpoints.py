"""Checkpoint files of two towers: DPR's `.cp`, microsoft/ANCE's for OpenQA, and SEED-Encoder's for Natural Questions.

All are one file of `torch.save`, a dictionary:

| key | holds |
| --- | --- |
| `model_dict` | tensors, `question_model.*` and `ctx_model.*` |
| `optimizer_dict`, `scheduler_dict`, `offset`, `epoch` | where training was; not read |
| `encoder_params` | settings: `sequence_length`, `do_lower_case`, ...; empty in microsoft/ANCE's |

Below the towers' names come BertModel's (`dpr-cp`), or `fairseq_roberta.` and fairseq's (`seed-nq`). Files that hold
the state dictionary alone, or one for each tower, are read too. Source: facebookresearch/DPR, dpr/utils/model_utils.py;
microsoft/ANCE, utils/dpr_utils.py and drivers/run_ann_dpr.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ance_fast.artifacts import atomic_file
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.ance_head import NO_HEAD
from ance_fast.models.dpr_towers import (
    POOLER,
    PROJECTION,
    alone,
    bert_settings,
    bert_tower,
    heads_of,
    tower_state,
)
from ance_fast.models.encoder import Encoder
from ance_fast.models.fairseq_weights import model_from_fairseq
from ance_fast.models.foreign import ReadOptions, foreign_tokenizer
from ance_fast.models.seed_checkpoints import encoder_of, fairseq_state
from ance_fast.models.state_dicts import without_prefixes
from ance_fast.models.weight_files import plain_tensors, read_state, tensors_of, write_state, writing

logger = logging.getLogger(__name__)

TOWERS = {"query": "question_model.", "document": "ctx_model."}
_FAIRSEQ = "fairseq_roberta."
# Hidden size, layers and vocabulary of what DPR calls its start by.
_PUBLISHED = {
    (768, 12, 30522): "bert-base-uncased",
    (768, 12, 28996): "bert-base-cased",
    (1024, 24, 30522): "bert-large-uncased",
    (1024, 24, 28996): "bert-large-cased",
}
# Of a language model around the encoder.
_UNUSED = ".lm_head."


def is_dpr_file(path: Path, trust: bool = False) -> bool:
    """Whether `path` is a file of two BERT towers."""
    return any(name.startswith("embeddings.") for name in _tower_names(path, trust))


def is_seed_nq_file(path: Path, trust: bool = False) -> bool:
    """Whether `path` is a file of two towers of fairseq."""
    return any(name.startswith(_FAIRSEQ) for name in _tower_names(path, trust))


def read_dpr_file(path: Path, options: ReadOptions) -> Encoder:
    """The two towers of a DPR file: BERT, first token, a projection where there is one, inner product.

    The tokenizer is the one beside the file, or that of the options. Raises `ArtifactError` for files that cannot be
    read, lack a tower or hold tensors that do not fit (named), `ConfigError` where attention heads have to be said.
    """
    towers, params = _read(path, options.trust)
    tokenizer = foreign_tokenizer(path.parent, "bert", options, "dpr")
    if _setting(params, "do_lower_case") is False and options.text_preset is None:
        logger.warning(
            "%s: was trained on text that was not lower-cased (do_lower_case); its tokenizer here decides that", path
        )
    heads = heads_of(options, _setting(params, "num_attention_heads"))
    made = []
    for route, state in towers.items():
        prefix = TOWERS[route]
        body = {name: tensor for name, tensor in state.items() if not name.startswith(f"{PROJECTION}.")}
        projection = {name.removeprefix(f"{PROJECTION}."): tensor for name, tensor in state.items() if name not in body}
        settings = bert_settings(body, heads, prefix, path)
        made.append(bert_tower(body, settings, projection, (prefix, prefix + PROJECTION), tokenizer, path))
    return _pair(made, params)


def read_seed_nq_file(path: Path, options: ReadOptions) -> Encoder:
    """The two towers of a SEED-Encoder for Natural Questions: first token, inner product. Raises as `read_dpr_file`."""
    towers, params = _read(path, options.trust)
    heads = heads_of(options, _setting(params, "num_attention_heads"))
    made = []
    for route, state in towers.items():
        state = {name: tensor for name, tensor in state.items() if _UNUSED not in name}
        ends = "embed_tokens.weight"
        inner = next((name.removesuffix(ends) for name in state if name.endswith(ends)), _FAIRSEQ)
        named = {TOWERS[route] + name: tensor for name, tensor in state.items()}
        model, weights = model_from_fairseq(named, path, prefix=TOWERS[route] + inner, heads=heads)
        made.append(encoder_of(model, weights, NO_HEAD, path, path.parent, options))
    return _pair(made, params)


def write_dpr_file(encoder: Encoder, path: Path) -> None:
    """Write a file that DPR and microsoft/ANCE's `run_ann_dpr.py` load; whole or not at all. A shared tower is both.

    Raises `ConfigError` for towers that are not BERT's first token with at most a projection behind it.
    """
    state: dict[str, Tensor] = {}
    for route, tower in _towers(encoder).items():
        body, projection = tower_state(tower, "dpr-cp")
        hidden = int(tower.backbone.model.config.hidden_size)
        # Nothing uses it, but a program that makes the model with it asks for it.
        pooler = {"dense.weight": torch.zeros(hidden, hidden), "dense.bias": torch.zeros(hidden)}
        kept: Any = getattr(tower.backbone.model, "pooler", None)
        pooler = pooler if kept is None else kept.state_dict()
        body |= {POOLER + name: tensor for name, tensor in pooler.items()}
        body |= {f"{PROJECTION}.{name}": tensor for name, tensor in projection.items()}
        state |= {TOWERS[route] + name: tensor for name, tensor in body.items()}
    _write(encoder, state, path, "hf_bert")


def write_seed_nq_file(encoder: Encoder, path: Path) -> None:
    """Write two towers of fairseq as SEED-Encoder's code for Natural Questions does; whole or not at all.

    Raises `ConfigError` for towers that fairseq's encoder is not, or that have a head.
    """
    state: dict[str, Tensor] = {}
    for route, tower in _towers(encoder).items():
        if tower.layout.head:
            raise ConfigError("seed-nq has no place for a head; leave it out with --head none")
        body = fairseq_state(tower, "seed-nq")
        state |= {TOWERS[route] + _FAIRSEQ + name: tensor for name, tensor in body.items()}
    _write(encoder, state, path, "fairseq_roberta")


def _towers(encoder: Encoder) -> dict[str, Encoder]:
    return {"query": encoder.for_queries, "document": alone(encoder)}


def _pair(made: list[Encoder], params: Any) -> Encoder:
    """The query tower and the document tower as one encoder, that cuts texts where the file says."""
    encoder = Encoder.pair(*made)
    for name in ("max_query_length", "max_document_length"):
        length = _setting(params, name)
        length = _setting(params, "sequence_length") if length is None else length
        if isinstance(length, int) and length >= 3:
            for tower in encoder.towers:
                most: dict[str, Any] = {name: min(length, int(tower.layout.max_seq_length or length))}
                tower.layout = dataclasses.replace(tower.layout, **most)
    return encoder.eval()


def _read(path: Path, trust: bool) -> tuple[dict[str, dict[str, Tensor]], Any]:
    """{"query", "document"} -> the tower's tensors without its prefix, and the settings."""
    content = read_state(path, trust=trust)
    state = without_prefixes(tensors_of(_state_in(content), path), ("module.",))
    towers = {
        route: {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for route, prefix in TOWERS.items()
    }
    missing = [f"{TOWERS[route]}*" for route, tensors in towers.items() if not tensors]
    if missing:
        raise ArtifactError(f"{path}: no tensors {' and '.join(missing)}; a checkpoint of two towers has both")
    other = [name for name in state if not name.startswith(tuple(TOWERS.values()))]
    if other:
        raise ArtifactError(
            f"{path}: the weights do not fit; {len(other)} tensors of neither tower ({', '.join(other[:3])})"
        )
    return towers, content.get("encoder_params")


def _state_in(content: Any) -> Any:
    """The state dictionary, in whichever of the forms."""
    if not isinstance(content, Mapping):
        return content
    state = content.get("model_dict", content)
    keys = [prefix.removesuffix(".") for prefix in TOWERS.values()]
    if isinstance(state, Mapping) and all(isinstance(state.get(key), Mapping) for key in keys):
        return {f"{key}.{name}": tensor for key in keys for name, tensor in state[key].items()}
    return state


def _tower_names(path: Path, trust: bool) -> list[str]:
    """Names of tensors below the towers' own; none for what is no file of two towers."""
    if not path.is_file():
        return []
    try:
        state = _state_in(read_state(path, trust=trust, mapped=True))
    except ArtifactError:
        return []
    names = [str(name).removeprefix("module.") for name in state] if isinstance(state, Mapping) else []
    prefixes = tuple(TOWERS.values())
    return [name.split(".", 1)[1] for name in names if name.startswith(prefixes)]


def _setting(params: Any, name: str) -> Any:
    if isinstance(params, Mapping):
        return params.get(name)
    return getattr(params, name, None) if isinstance(params, argparse.Namespace) else None


def _lower_cases(tokenizer: Any) -> bool:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and bool(normalizer.normalize_str("A") == "a")


def _write(encoder: Encoder, state: Mapping[str, Tensor], path: Path, kind: str) -> None:
    config: Any = encoder.backbone.model.config
    sizes = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    content = {
        "model_dict": plain_tensors(state),
        "optimizer_dict": {},
        "scheduler_dict": {},
        "offset": 0,
        "epoch": 0,
        "encoder_params": {
            "do_lower_case": _lower_cases(encoder.tokenizer),
            # Where there is none, whoever loads the file has to name one.
            "pretrained_model_cfg": _PUBLISHED.get(sizes),
            "encoder_model_type": kind,
            "pretrained_file": None,
            "projection_dim": encoder.dim if encoder.layout.head else 0,
            "sequence_length": max(encoder.max_query_length, encoder.max_document_length),
            # DPR knows one length and takes the heads from its configuration; these are read here.
            "max_query_length": encoder.max_query_length,
            "max_document_length": encoder.max_document_length,
            "num_attention_heads": int(config.num_attention_heads),
        },
    }
    with writing(path), atomic_file(path) as staging:
        write_state(content, staging)
