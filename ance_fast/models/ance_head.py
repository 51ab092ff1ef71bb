"""The head of ANCE's models: a Linear, then LayerNorm, on the pooled hidden state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.encoder import Encoder
from ance_fast.models.heads import head_module
from ance_fast.models.layouts import HeadModule

Head = tuple[tuple[HeadModule, ...], nn.ModuleList]
"""A head's layout and its modules."""
NO_HEAD: Head = ((), nn.ModuleList())

IDENTITY = "torch.nn.modules.linear.Identity"
# Their names in microsoft/ANCE, and ours.
HEAD_NAMES = {
    "embeddingHead.weight": "0.linear.weight",
    "embeddingHead.bias": "0.linear.bias",
    "norm.weight": "1.norm.weight",
    "norm.bias": "1.norm.bias",
}


def head_layout(width_in: int, width_out: int) -> tuple[HeadModule, ...]:
    """Linear [width_in] -> [width_out] and LayerNorm (eps 1e-5), as modules of a checkpoint."""
    linear = {"in_features": width_in, "out_features": width_out, "bias": True, "activation_function": IDENTITY}
    return HeadModule("Dense", linear), HeadModule("LayerNorm", {"dimension": width_out})


def read_head(state: Mapping[str, Tensor], hidden_size: int, where: Path) -> Head:
    """The layout and the modules of the head whose tensors `state` holds under ANCE's names.

    Raises `ArtifactError` for tensors that are missing, and for widths that do not follow from each other.
    """
    missing = [name for name in HEAD_NAMES if name not in state]
    if missing:
        raise ArtifactError(
            f"{where}: the head lacks {len(missing)} of {len(HEAD_NAMES)} tensors: {', '.join(missing)}"
        )
    weight = state["embeddingHead.weight"]
    if weight.ndim != 2:
        raise ArtifactError(f"{where}: embeddingHead.weight is {list(weight.shape)}, expected a matrix")
    width_out, width_in = weight.shape
    if width_in != hidden_size:
        raise ArtifactError(
            f"{where}: the head takes vectors {width_in} wide (embeddingHead.weight is {list(weight.shape)}), the "
            f"transformer gives {hidden_size}"
        )
    for name in ("embeddingHead.bias", "norm.weight", "norm.bias"):
        if state[name].shape != (width_out,):
            raise ArtifactError(
                f"{where}: the head gives vectors {width_out} wide (embeddingHead.weight is {list(weight.shape)}), "
                f"{name} is {list(state[name].shape)}"
            )
    layout = head_layout(width_in, width_out)
    head = nn.ModuleList(head_module(spec) for spec in layout)
    head.load_state_dict({ours: state[theirs] for theirs, ours in HEAD_NAMES.items()})
    return layout, head


def head_state(encoder: Encoder, form: str) -> dict[str, Tensor]:
    """The head's tensors under ANCE's names. Raises `ConfigError` where `encoder` has another head, or none."""
    specs = encoder.layout.head
    fits = [spec.kind for spec in specs] == ["Dense", "LayerNorm"] and (
        specs[0].config.get("activation_function") == IDENTITY
        and specs[0].config.get("bias", True)
        and not specs[0].config.get("use_residual", False)
    )
    if not fits:
        found = " and ".join(spec.kind for spec in specs) or "none"
        raise ConfigError(
            f"{form} holds encoders with ANCE's head, a Linear without activation and LayerNorm; this one's head is "
            f"{found} (`--head fresh` starts a new one)"
        )
    state = encoder.head.state_dict()
    return {theirs: state[ours] for theirs, ours in HEAD_NAMES.items()}


def fresh_head(hidden_size: int, seed: int) -> Head:
    """A head as ANCE's warm-up starts it: weights of the Linear N(0, 0.02), its bias as torch starts one, LayerNorm 1
    and 0. `seed` decides the draws, whatever torch's own generator is at.
    """
    layout = head_layout(hidden_size, hidden_size)
    head = nn.ModuleList(head_module(spec) for spec in layout)
    draws = torch.Generator().manual_seed(seed)
    bound = hidden_size**-0.5
    with torch.no_grad():
        linear: Any = head[0].linear
        linear.weight.normal_(0.0, 0.02, generator=draws)
        linear.bias.uniform_(-bound, bound, generator=draws)
    return layout, head
