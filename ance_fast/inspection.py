"""What this installation is made of and what it will use: the answer to "why is it slow here?"."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "faiss-cpu",
    "faiss-gpu",
    "cupy-cuda13x",
    "triton",
)


def info() -> dict[str, Any]:
    """Versions, CPU, GPU, the compiled extension, the FAISS kind, and for each op the backend it uses and why.

    Never raises: what is missing is reported as missing.
    """
    import torch

    from ance_fast import __version__
    from ance_fast.index.faiss_library import faiss_kind, faiss_reason
    from ance_fast.ops.dispatch import describe, extension_problem

    extension: dict[str, Any] = {"problem": extension_problem()}
    if extension["problem"] is None:
        from ance_fast import _C

        extension = _C.build_info()
    return {
        "ance_fast": __version__,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "gpu": _gpu(torch),
        "extension": extension,
        "faiss": {"kind": faiss_kind(), "why": faiss_reason()},
        "ops": {op: {device: list(choice) for device, choice in per.items()} for op, per in describe().items()},
        "attention": {
            "cpu": "packed, one SDPA call a length; padded for models without pluggable attention",
            "cuda": "packed, torch varlen attention (fp16, bf16), experimental: not yet run on a GPU; padded in fp32",
        },
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _gpu(torch: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1), "sm": f"{d.major}{d.minor}"} for d in devices
    ]
