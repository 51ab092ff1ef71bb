"""Which implementation of an op runs, why, and how often each one did.

Every op lists its backends best first. `choose` takes the first that serves the tensor's device, dtype and width. A
backend that serves them but cannot run here (the compiled extension does not import) makes the choice a *fallback*: it
is logged once, and an error when ANCE_FAST_STRICT=1. A GPU kernel of an op is added as one `Backend` line in front of
"torch".
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ance_fast.errors import ConfigError

logger = logging.getLogger(__name__)

_COUNTS: Counter[tuple[str, str, str]] = Counter()


class Choice(NamedTuple):
    backend: str
    reason: str


@dataclass(frozen=True)
class Backend:
    """One implementation: the device types and dtypes it serves (None: all), the reason to give for choosing it on a
    device type, what it lacks here (None: nothing), device types that it serves only when asked for by name, and the
    most columns that it takes (None: any number)."""

    name: str
    reason: Callable[[str], str]
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    missing: Callable[[], str | None] = lambda: None
    by_name: frozenset[str] = frozenset()
    widest: int | None = None


@functools.cache
def extension_problem() -> str | None:
    """Why the compiled extension cannot be used, or None."""
    try:
        from ance_fast import _C
    except ImportError as error:
        return f"the compiled extension does not import ({error})"
    return None if hasattr(_C, "TopKCollector") else "the compiled extension is from another version"


def _cpp_reason(_: str) -> str:
    if extension_problem():
        return "C++ kernel"
    from ance_fast import _C

    return f"C++ kernel, {_C.best_isa()}"


def _cuda_problem() -> str | None:
    problem = extension_problem()
    if problem:
        return problem
    from ance_fast import _C

    return None if hasattr(_C, "pool_normalize_forward_cuda") else "the extension was built without CUDA"


@functools.cache
def _triton_problem() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton does not import ({error}); it comes with torch's CUDA wheels"
    return None


@functools.cache
def _varlen_problem() -> str | None:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError as error:
        return f"torch {torch.__version__} has no variable-length attention ({error}); it comes with torch 2.10"
    return None


def _triton_reason(_: str) -> str:
    return "Triton kernel, " + ("interpreted" if _INTERPRETED else "experimental: not yet run on a GPU")


def _torch_reason(device: str) -> str:
    return "plain torch" if device == "cpu" else "plain torch, no GPU kernel takes it"


_TORCH = Backend("torch", _torch_reason)
_REFERENCE = Backend("reference", lambda _: "asked for by name")
_CPP_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CPP = Backend("cpp", _cpp_reason, frozenset({"cpu"}), _CPP_DTYPES, extension_problem)
_CPP_FLOAT = Backend("cpp", _cpp_reason, frozenset({"cpu"}), frozenset({torch.float32}), extension_problem)
_CUDA = Backend(
    "cuda", lambda _: "CUDA kernel, experimental: not yet run on a GPU", frozenset({"cuda"}), _CPP_DTYPES, _cuda_problem
)
# Triton's interpreter runs kernels on the CPU: for tests, which ask for them by name.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TRITON = Backend(
    "triton",
    _triton_reason,
    frozenset({"cuda"}),
    _CPP_DTYPES,
    _triton_problem,
    frozenset({"cpu"} if _INTERPRETED else ()),
)
_VARLEN = Backend(
    "varlen",
    lambda _: "FlashAttention by torch.nn.attention.varlen, experimental: not yet run on a GPU",
    frozenset({"cuda"}),
    frozenset({torch.float16, torch.bfloat16}),
    _varlen_problem,
)
# Also what serves fp64.
_BRUTE_FORCE = Backend("reference", lambda _: "plain torch, all scores sorted")
_CHUNKED = Backend("torch", lambda d: "torch in row chunks" + ("" if d == "cpu" else ", no GPU kernel takes it"))

BACKENDS: dict[str, tuple[Backend, ...]] = {
    # A row stays in shared memory or in registers.
    "pool_normalize": (_CPP, replace(_CUDA, widest=8192), replace(_TRITON, widest=16384), _TORCH, _REFERENCE),
    "contrastive_loss": (_CPP, _TRITON, _CHUNKED, _REFERENCE),
    "pairwise_loss": (_CPP, _TRITON, _TORCH, _REFERENCE),
    "topk_inner_product": (_CPP, _TRITON, replace(_TORCH, dtypes=_CPP_DTYPES), _BRUTE_FORCE),
    "encoder_layer": (_CPP_FLOAT, replace(_TRITON, widest=16384), _TORCH),
    "embed_layernorm": (_CPP_FLOAT, replace(_TRITON, widest=16384), _TORCH),
    "packed_self_attention": (_CPP_FLOAT, _VARLEN, _TORCH),
}


def choose(op: str, device: torch.device | str, dtype: torch.dtype, backend: str = "auto", width: int = 0) -> Choice:
    """The backend that `op` uses for tensors of this device, dtype and width, and the reason. Does not count.

    Raises ConfigError for an unknown or unavailable forced backend, and for a fallback under ANCE_FAST_STRICT=1.
    """
    kind = torch.device(device).type
    return _explain(*_select(op, kind, dtype, backend, width), kind)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def dispatch(op: str, device: torch.device, dtype: torch.dtype, backend: str, width: int = 0) -> str:
    """`choose`, counted. Under torch.compile it runs, and counts, once when the graph is traced."""
    name = _select(op, device.type, dtype, backend, width)[0].name
    _COUNTS[op, device.type, name] += 1
    return name


def _select(
    op: str, kind: str, dtype: torch.dtype, backend: str, width: int = 0, warn: bool = True
) -> tuple[Backend, str | None]:
    """The backend, and what a better one lacks here if this is a fallback."""
    if backend != "auto":
        return _forced(op, kind, dtype, backend, width), None
    missing: str | None = None
    for candidate in BACKENDS[op]:
        if _unserved(candidate, kind, dtype, width):
            continue
        problem = candidate.missing()
        if problem is None:
            return candidate, missing
        missing = problem
        if os.environ.get("ANCE_FAST_STRICT") == "1":
            raise ConfigError(f"{op}: backend {candidate.name!r} is missing and ANCE_FAST_STRICT=1: {problem}")
        if warn:
            _warn_once(op, candidate.name, problem)
    raise ConfigError(f"{op}: no backend for {dtype} on {kind}")


def _forced(op: str, kind: str, dtype: torch.dtype, backend: str, width: int) -> Backend:
    for candidate in BACKENDS[op]:
        if candidate.name == backend:
            problem = _unserved(candidate, kind, dtype, width, candidate.by_name) or candidate.missing()
            if problem:
                raise ConfigError(f"{op}: backend {backend!r} is not available: {problem}")
            return candidate
    names = ", ".join(["auto", *(candidate.name for candidate in BACKENDS[op])])
    raise ConfigError(f"{op}: backend is {backend!r}; it must be one of {names}")


def dispatch_counts() -> dict[str, int]:
    """How often each backend ran in this process: {"op/device/backend": count}."""
    return {"/".join(key): count for key, count in sorted(_COUNTS.items())}


def reset_dispatch_counts() -> None:
    _COUNTS.clear()


def describe() -> dict[str, dict[str, Choice]]:
    """{op: {"cpu": (backend, reason), "cuda": (backend, reason)}} for float32 tensors. Never raises."""
    return {op: {device: _described(op, device) for device in ("cpu", "cuda")} for op in BACKENDS}


def _explain(selected: Backend, missing: str | None, kind: str) -> Choice:
    reason = selected.reason(kind)
    return Choice(selected.name, f"fallback: {missing}; {reason}" if missing else reason)


def _described(op: str, device: str) -> Choice:
    try:
        return _explain(*_select(op, device, torch.float32, "auto", warn=False), device)
    except ConfigError as error:
        return Choice("none", str(error))


def _unserved(
    backend: Backend, device: str, dtype: torch.dtype, width: int, by_name: frozenset[str] = frozenset()
) -> str | None:
    if backend.devices is not None and device not in backend.devices | by_name:
        return f"it does not run on {device}"
    if backend.dtypes is not None and dtype not in backend.dtypes:
        return f"it does not take {dtype}"
    if backend.widest is not None and width > backend.widest:
        return f"it takes rows of at most {backend.widest} columns, not {width}"
    return None


@functools.cache
def _warn_once(op: str, backend: str, problem: str) -> None:
    logger.warning("%s: backend %r is missing, a slower one is used: %s", op, backend, problem)
