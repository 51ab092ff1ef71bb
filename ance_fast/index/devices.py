"""Names of devices: "cpu", "cuda", "cuda:N", or "auto"."""

from __future__ import annotations

from collections.abc import Sequence

from ance_fast.errors import ConfigError


def chosen_devices(device: str, devices: Sequence[str] | None) -> tuple[str, ...]:
    """`devices`, or `device` alone. Raises `ConfigError` for a name that is none, no name, or both arguments."""
    if devices is not None and device != "auto":
        raise ConfigError(f"device={device!r} and devices={list(devices)!r} are both given; give one of them")
    names = (device,) if devices is None else tuple(devices)
    if isinstance(devices, str) or not names:
        raise ConfigError(f"devices is {devices!r}; give a list of names, for example ['cuda:0', 'cuda:1']")
    for name in names:
        kind, _, number = name.partition(":")
        if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
            raise ConfigError(f"unknown device {name!r}; choose 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if len(names) > 1 and "auto" in names:
        raise ConfigError("'auto' is one device; name each of several, for example ['cuda:0', 'cuda:1']")
    return names


def torch_devices(names: Sequence[str]) -> tuple[str, ...]:
    """`names` as torch says them: "auto" is the first GPU if there is one."""
    import torch

    found = {"auto": "cuda:0" if torch.cuda.is_available() else "cpu", "cuda": "cuda:0"}
    return tuple(found.get(name, name) for name in names)
