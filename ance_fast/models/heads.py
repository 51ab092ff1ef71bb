"""What may stand between pooling and normalisation: sentence-transformers' Dense and LayerNorm modules."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.layouts import HeadModule


class Dense(nn.Module):
    """sentence-transformers' Dense: activation(linear(x)), plus x when the module is residual."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width_in, width_out = config["in_features"], config["out_features"]
        self.linear = nn.Linear(width_in, width_out, bias=config.get("bias", True))
        self.activation = _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        self.use_residual = bool(config.get("use_residual", False))
        if self.use_residual and width_in != width_out:
            self.residual = nn.Linear(width_in, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x))
        if self.use_residual:
            out = out + (self.residual(x) if hasattr(self, "residual") else x)
        return out


class LayerNorm(nn.Module):
    """sentence-transformers' LayerNorm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config["dimension"])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


def head_module(spec: HeadModule) -> nn.Module:
    """The module a checkpoint's layout describes, with fresh weights."""
    return Dense(spec.config) if spec.kind == "Dense" else LayerNorm(spec.config)


def load_head(module: nn.Module, spec: HeadModule) -> None:
    """Read the module's weights from its folder (`ArtifactError` if they are missing or do not fit)."""
    if spec.weights is None:
        return
    safe, legacy = spec.weights / "model.safetensors", spec.weights / "pytorch_model.bin"
    if not safe.is_file() and not legacy.is_file():
        raise ArtifactError(f"{spec.weights}: no weights (model.safetensors or pytorch_model.bin)")
    try:
        state = load_file(safe) if safe.is_file() else torch.load(legacy, map_location="cpu", weights_only=True)
        module.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{spec.weights}: the weights do not fit the {spec.kind} module: {error}") from error


def _activation(name: str) -> nn.Module:
    module, _, cls = name.rpartition(".")
    if not module.startswith("torch.nn"):
        raise ConfigError(f"Dense activation {name!r} is not a torch.nn module")
    made: nn.Module = getattr(importlib.import_module(module), cls)()
    return made
