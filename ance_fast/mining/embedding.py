"""Texts to vectors by whatever encodes: our `Encoder`, a `SentenceTransformer`, or an object with their methods.

A cache of embeddings is found again only for the very same encoder: its key is a digest of every weight, the modules'
settings, the tokenizer, the prompt and the texts. What cannot be told apart is not cached.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ance_fast.artifacts import atomic_file
from ance_fast.errors import ConfigError
from ance_fast.index.vectors import as_array, normalized
from ance_fast.models.encoder import Encoder

logger = logging.getLogger(__name__)

METRICS = ("cosine", "ip")
METHODS = {"query": ("encode_query", "encode"), "document": ("encode_document", "encode")}


def embed(
    model: Any,
    texts: list[str],
    role: str,
    *,
    metric: str,
    prompt: str | None = None,
    prompt_name: str | None = None,
    batch_size: int = 32,
    pool: Any = None,
    show_progress: bool = False,
    cache: Path | None = None,
) -> np.ndarray:
    """Embed `texts` as "query" or "document": float32 [n, dim], L2-normalised for the metric "cosine".

    `prompt` wins over `prompt_name`; `batch_size` and `pool` are for models that take them. The model is left in the
    mode (training or not) it was found in.

    Raises `ConfigError`: the model has no method that encodes, takes no prompt, gives another number of vectors, or
    (with `cache`) cannot be told from others.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r}: choose {' or '.join(METRICS)}")
    name = next((name for name in METHODS[role] if callable(getattr(model, name, None))), None)
    if name is None:
        raise ConfigError(f"the model ({type(model).__name__}) has none of {', '.join(METHODS[role])}; give an encoder")
    method = getattr(model, name)
    asked = {"prompt": prompt} if prompt is not None else {"prompt_name": prompt_name}
    asked = {option: value for option, value in {**asked, "pool": pool}.items() if value is not None}
    file = None if cache is None else cache / f"{role}-{_key(model, texts, name, sorted(asked.items()))}.npy"
    vectors = _cached(file, len(texts))
    if vectors is None:
        with torch.no_grad(), _same_mode(model):
            found = method(texts, **asked, **_accepted(method, model, asked, batch_size, show_progress))
        vectors = np.ascontiguousarray(as_array(found), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ConfigError(f"{name} gave vectors of shape {list(vectors.shape)} for {len(texts)} texts")
        if file is not None:
            with atomic_file(file) as staging, open(staging, "wb") as out:
                np.save(out, vectors, allow_pickle=False)
    return normalized(vectors) if metric == "cosine" else vectors


def _accepted(method: Any, model: Any, asked: dict[str, Any], batch_size: int, show_progress: bool) -> dict[str, Any]:
    """The options without a say in the result that `method` takes; refuses those of `asked` that it does not."""
    if isinstance(model, Encoder):
        return {"show_progress_bar": show_progress}  # batches there are budgets of tokens
    parameters = inspect.signature(method).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    refused = [option for option in asked if option not in parameters and not anything]
    if refused:
        raise ConfigError(f"{type(model).__name__}.{method.__name__} takes no {refused[0]}; leave it out")
    quiet = {"batch_size": batch_size, "show_progress_bar": show_progress}
    return {option: value for option, value in quiet.items() if option in parameters or anything}


@contextmanager
def _same_mode(model: Any) -> Iterator[None]:
    """Encoding puts a model into evaluation mode; each module goes back, since some may be frozen in that mode."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    before = [module.training for module in modules]
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _cached(file: Path | None, count: int) -> np.ndarray | None:
    if file is None or not file.exists():
        return None
    try:
        vectors: np.ndarray = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        logger.warning("%s: not readable (%s); encoding again", file, error)
        return None
    if vectors.ndim != 2 or len(vectors) != count or vectors.dtype != np.float32:
        logger.warning("%s: holds %s %s; encoding again", file, vectors.dtype, list(vectors.shape))
        return None
    return vectors


def _key(model: Any, texts: list[str], *settings: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((model_fingerprint(model), settings)).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def model_fingerprint(model: Any) -> str:
    """A digest of all that decides a model's embeddings. Raises `ConfigError` where that cannot be known."""
    if isinstance(model, Encoder):
        return model.fingerprint()
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"cache_folder: the weights of {type(model).__name__} cannot be seen, so embeddings could be stale; leave "
            "it out, or give an Encoder or a SentenceTransformer"
        )
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    for name, module in model.named_modules():
        settings = getattr(module, "get_config_dict", None)
        digest.update(f"{name} {type(module).__name__} {settings() if callable(settings) else ''}".encode())
    for name in ("prompts", "default_prompt_name", "max_seq_length", "truncate_dim"):
        digest.update(f"{name}={getattr(model, name, None)!r}".encode())
    backend = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    digest.update(backend.to_str().encode() if backend is not None else b"")
    return digest.hexdigest()
