"""What may stand between pooling and normalisation: sentence-transformers' Dense and LayerNorm modules."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.layouts import HeadModule
from ance_fast.models.state_dicts import refuse_misfit, shapes_of
from ance_fast.models.weight_files import folder_weights


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
    state = folder_weights(spec.weights)
    refuse_misfit(state, shapes_of(module.state_dict()), f"{spec.weights}, a {spec.kind} module")
    module.load_state_dict(state)


def refuse_misfit_head(head: Sequence[HeadModule], hidden_size: int, where: Path) -> None:
    """Raise `ArtifactError` unless each module of the head takes vectors as wide as the one before gives them."""
    width, giver = hidden_size, "the transformer"
    for spec in head:
        takes = spec.config["in_features"] if spec.kind == "Dense" else spec.config["dimension"]
        if takes != width:
            raise ArtifactError(
                f"{where}: the head's {spec.kind} takes vectors {takes} wide, {giver} gives {width}; they do not "
                "belong together"
            )
        width, giver = spec.config.get("out_features", takes), f"its {spec.kind}"


def _activation(name: str) -> nn.Module:
    module, _, cls = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls) if f"{module}.".startswith("torch.nn.") else None
        made = found() if isinstance(found, type) else None
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"Dense activation {name!r} cannot be made: {error}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"Dense activation {name!r} is not a torch.nn module")
    return made
