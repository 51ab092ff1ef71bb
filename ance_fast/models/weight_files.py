"""Files of weights that other programs wrote, and files that they read.

safetensors comes first. A file of `torch.save` is a pickle: it is read with torch's `weights_only`, which makes
tensors, containers and `argparse.Namespace` and nothing else. What needs more is read only by those who trust where it
comes from.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ance_fast.errors import ArtifactError

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
# Behind either: names the several files that lie in its place.
INDEX = ".index.json"


def read_state(path: Path, *, trust: bool = False, mapped: bool = False) -> Any:
    """What `torch.save` put into the file `path`, tensors on the CPU.

    mapped: tensors stay in the file until they are looked at, where its format allows.
    trust: also run what a pickle may ask for; objects of classes that are not installed come as empty shells.

    Raises `ArtifactError` for a file that is missing, cut off or no such file, and for one that needs `trust`.
    """
    options: dict[str, Any] = {"map_location": "cpu"}
    try:
        # The format of torch before 1.6, which is no zip archive, cannot be mapped.
        options["mmap"] = mapped and _begins(path, b"PK\x03\x04")
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        refused = str(error)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except Exception as error:  # what is damaged may raise anything: zlib.error, AssertionError, AttributeError, ...
        raise _unreadable(path, error) from error
    if not trust:
        found = re.search(r"GLOBAL (\S+)", refused)
        if found is None:
            raise ArtifactError(f"{path}: cannot be read as a file of weights; it is none, or damaged")
        raise ArtifactError(
            f"{path}: the pickle holds a Python object ({found[1]}), and reading that can run any code; if you trust "
            "where the file comes from, convert it once with `ance-fast convert ... --trust`"
        )
    try:
        return torch.load(path, weights_only=False, pickle_module=_pickle_with_shells(), **options)
    except Exception as error:  # a pickle may raise anything
        raise _unreadable(path, error) from error


def folder_weights(folder: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """The tensors of `folder`, from model.safetensors or else pytorch_model.bin, or from the several files that the
    index of either names.

    Raises `ArtifactError` if there is none of these, and as `read_state` does.
    """
    state: dict[str, Tensor] = {}
    for path in _files(folder):
        if path.suffix == ".safetensors":
            try:
                state |= load_file(path)
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from error
        else:
            state |= tensors_of(read_state(path, trust=trust), path)
    return state


def weight_names(folder: Path, *, trust: bool = False) -> list[str]:
    """The names of the tensors of `folder`; as a rule their values are not read. Raises as `folder_weights` does."""
    names: list[str] = []
    for path in _files(folder):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    names += file.keys()
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from error
        else:
            names += tensors_of(read_state(path, trust=trust, mapped=True), path)
    return names


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds weights, in one file or several."""
    return any((folder / f"{name}{end}").is_file() for name in (SAFETENSORS, PICKLED) for end in ("", INDEX))


def tensors_of(state: Any, where: Path) -> dict[str, Tensor]:
    """`state` if it is a dictionary of named tensors (`ArtifactError` otherwise)."""
    if not isinstance(state, Mapping):
        raise ArtifactError(f"{where}: holds a {type(state).__name__}, not a dictionary of tensors")
    other = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if other:
        raise ArtifactError(
            f"{where}: {len(other)} of {len(state)} entries are no tensors, such as {other[0]!r}; this is not a "
            "dictionary of weights"
        )
    return dict(state)


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """`torch.save` in the form that every torch since 1.0 reads."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


def plain_tensors(state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Copies of tensors as released checkpoints hold them: float32 on the CPU, each with memory of its own."""
    return OrderedDict((name, tensor.detach().to("cpu", torch.float32, copy=True)) for name, tensor in state.items())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of `path` that it was not written (`ArtifactError`) where a file or folder cannot be."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: the checkpoint was not written ({error}); is the disk full?") from error


def _files(folder: Path) -> list[Path]:
    """The files of weights in `folder`, of those that transformers would take."""
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            return [folder / part for part in _parts(index)]
    raise ArtifactError(f"{folder}: no weights ({SAFETENSORS} or {PICKLED})")


def _parts(index: Path) -> list[str]:
    """The names of the files that an index speaks of."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{index}: not an index of weights ({type(error).__name__}: {error})") from error
    if outside:
        raise ArtifactError(f"{index}: {outside[0]!r} is not the name of a file beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{index}: names {len(missing)} of {len(names)} files that are not there, such as {missing[0]}; the "
            "checkpoint is incomplete"
        )
    return names


def _begins(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ArtifactError(f"{path}: cannot be read as a file of weights, it may be cut off or damaged ({reason})")


class _Shell:
    """Stands in for an object whose class is not installed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _pickle_with_shells() -> types.SimpleNamespace:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return type(name, (_Shell,), {})

    return types.SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")
