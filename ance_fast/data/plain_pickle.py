"""Pickles that hold plain data, read and written without running anything: dictionaries of numbers, NumPy arrays.

microsoft/ANCE keeps its mappings and, until 2026, its embeddings as pickles. A pickle is a program; the reader here
knows none of the classes and functions that such a program may ask for, except the ones a NumPy array is made of, and
those are its own. So nothing needs to be trusted.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import DataError

_ARRAY_TYPES = ("f2", "f4", "f8", "i4", "i8")


def read_number_pairs(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(keys, values), both int64 [n] in the dictionary's order, of a pickled dictionary of integers.

    Raises `DataError`: a pickle of anything else (the message says what it asks for), cut off, numbers beyond int64.
    """
    value = _load(path, {})
    if not isinstance(value, dict) or not all(type(key) is type(number) is int for key, number in value.items()):
        raise DataError(f"{path}: expected a pickled dictionary of integers, got {_kind(value)}")
    try:
        keys = np.fromiter(value.keys(), dtype=np.int64, count=len(value))
        return keys, np.fromiter(value.values(), dtype=np.int64, count=len(value))
    except OverflowError:
        raise DataError(f"{path}: a number does not fit 64 bits") from None


def read_array_pickle(path: str | Path) -> np.ndarray:
    """A pickled NumPy array of float16, float32, float64, int32 or int64. Raises `DataError` as `read_number_pairs`."""
    value = _load(path, _ARRAY_PARTS)
    if not isinstance(value, _Array):
        raise DataError(f"{path}: expected a pickled NumPy array, got {_kind(value)}")
    return value.made(path)


def write_array_pickle(path: str | Path, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """Pickle an array (of the types above, by rows) as NumPy 1 did, from its parts: nothing is held whole.

    NumPy 2 names its own modules in a pickle ("numpy._core"), which the NumPy that the original runs on does not have.
    """
    text, dot = _spelled, pickle.STACK_GLOBAL
    sizes = b"".join(map(_number, shape))
    with open(path, "wb") as file:
        file.write(pickle.PROTO + b"\x04" + text("numpy.core.multiarray") + text("_reconstruct") + dot)
        file.write(text("numpy") + text("ndarray") + dot + _number(0) + pickle.TUPLE1)
        file.write(pickle.SHORT_BINBYTES + b"\x01b" + pickle.TUPLE3 + pickle.REDUCE)
        file.write(pickle.MARK + _number(1) + pickle.MARK + sizes + pickle.TUPLE)
        file.write(text("numpy") + text("dtype") + dot + text(dtype.str[1:]) + pickle.NEWFALSE + pickle.NEWTRUE)
        file.write(pickle.TUPLE3 + pickle.REDUCE + pickle.MARK + _number(3) + text("<") + 3 * pickle.NONE)
        file.write(_number(-1) + _number(-1) + _number(0) + pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE)
        file.write(pickle.BINBYTES8 + struct.pack("<Q", math.prod(shape) * dtype.itemsize))
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=dtype.newbyteorder("<")).data)
        file.write(pickle.TUPLE + pickle.BUILD + pickle.STOP)


def _spelled(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode("ascii")


def _number(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


class _Array:
    """What stands for an array while its pickle is read."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def made(self, path: str | Path) -> np.ndarray:
        try:
            _, shape, kind, by_column, data = self.state
            if not isinstance(kind, _Type) or kind.name not in _ARRAY_TYPES or not isinstance(data, bytes | bytearray):
                raise ValueError(f"values of type {getattr(kind, 'name', kind)!r}")
            flat = np.frombuffer(data, dtype=np.dtype(kind.order + kind.name))
            return flat.reshape(tuple(shape), order="F" if by_column else "C")
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: not an array of numbers as NumPy pickles it ({error})") from None


class _Type:
    """What stands for a dtype: its name and, from its state, the order of its bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.lstrip("<>=|") if isinstance(name, str) else repr(name)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        self.order = order if order in ("<", ">") else "="


def _latin(text: Any, encoding: Any) -> bytes:
    # How old protocols spell bytes.
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another spelling than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # How the oldest protocol spells none at all.
    return b""


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    return _Array((1, shape, kind, order == "F", bytes(data)))


def _empty(*_: Any) -> _Array:
    return _Array()


_ARRAY_PARTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, known: dict[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain numbers do not need")
        return self._known[module, name]


def _load(path: str | Path, known: dict[tuple[str, str], Any]) -> Any:
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, known).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: not a pickle of plain numbers ({error or type(error).__name__})") from error


def _kind(value: Any) -> str:
    return "something else in it" if isinstance(value, dict) else type(value).__name__.lstrip("_").lower()
