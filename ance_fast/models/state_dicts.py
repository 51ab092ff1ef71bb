"""Whether named tensors are those that a model has, and what is wrong where they are not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Size, Tensor

from ance_fast.errors import ArtifactError

_SHOWN = 3


def stripped(names: Iterable[str], prefixes: Collection[str]) -> dict[str, str]:
    """Each name -> it without those of `prefixes` that all names have, in the order given."""
    plain = {name: name for name in names}
    for prefix in prefixes:
        if plain and all(name.startswith(prefix) for name in plain.values()):
            plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    return plain


def without_prefixes(state: Mapping[str, Tensor], prefixes: Collection[str]) -> dict[str, Tensor]:
    """`state` under its `stripped` names."""
    return {short: state[name] for name, short in stripped(state, prefixes).items()}


def refuse_misfit(state: Mapping[str, Tensor], expected: Mapping[str, Size], where: Path | str) -> None:
    """Raise `ArtifactError` unless `state` has the names and shapes of `expected`, no more and no fewer.

    The message counts what is missing, what nothing takes and what has another shape, and names the first of each.
    """
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", missing), ("not known", extra), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise ArtifactError(f"{where}: the weights do not fit; tensors {'; '.join(faults)}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Size]:
    """The shape of each tensor."""
    return {name: tensor.shape for name, tensor in state.items()}
