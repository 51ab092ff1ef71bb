"""Where an encoder computes, in which dtype, and as what its embeddings are handed out, by the names users give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ance_fast.errors import ConfigError, MissingDependencyError


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU where there is one. Raises `ConfigError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: no CUDA device is visible to torch {torch.__version__}")
    return device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name; "auto" is what `device` is fastest with. Raises `ConfigError`."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConfigError(f"dtype={name!r}: choose auto, float32, float16 or bfloat16")
    return dtype


def exporter(output: str, device: torch.device) -> Callable[[Tensor], Any]:
    """What makes embeddings on `device` the output asked for; raises before any is computed:
    `ConfigError`, `MissingDependencyError`."""
    if output == "numpy":
        return lambda embeddings: embeddings.cpu().numpy()
    if output == "torch":
        return lambda embeddings: embeddings
    if output != "cupy":
        raise ConfigError(f"output={output!r}: choose numpy, torch or cupy")
    if device.type != "cuda":
        raise ConfigError(f"output='cupy' needs the encoder on a GPU; it is on {device}")
    try:
        import cupy
    except ImportError as error:
        raise MissingDependencyError("output='cupy' needs CuPy: pip install 'ance_fast[gpu]'") from error
    return cupy.from_dlpack
