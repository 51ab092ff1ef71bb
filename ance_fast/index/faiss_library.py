"""Which FAISS is installed: faiss-cpu, faiss-gpu and faiss-gpu-cuvs hold the same module and overwrite each other."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import Any

from ance_fast.errors import MissingDependencyError

INSTALL = "pip install 'ance_fast[cpu]' (or 'ance_fast[gpu]' on a machine with an NVIDIA GPU)"


def faiss_distributions() -> list[str]:
    """Installed distributions that carry the module `faiss`, sorted; CUDA suffixes (-cu12) kept."""
    names = (dist.metadata["Name"] for dist in importlib.metadata.distributions())
    return sorted({name for name in names if name and re.fullmatch(r"faiss(-(cpu|gpu|gpu-cuvs)(-cu\d+)?)?", name)})


def faiss_kind() -> str | None:
    """One of "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"; None without FAISS; of several, what the module can do."""
    if importlib.util.find_spec("faiss") is None:
        return None
    found = faiss_distributions()
    if len(found) == 1 and found[0] != "faiss":
        return re.sub(r"-cu\d+$", "", found[0])
    import faiss

    return "faiss-gpu" if hasattr(faiss, "StandardGpuResources") else "faiss-cpu"


def faiss_reason() -> str:
    """One sentence for people: which FAISS is used and why, or what to do about it."""
    found = faiss_distributions()
    kind = faiss_kind()
    if kind is None:
        return f"FAISS is not installed: only Flat (exact, torch) works; {INSTALL}"
    if len(found) > 1:
        return (
            f"{' and '.join(found)} are both installed and overwrite each other's files; the module works as {kind}; "
            f"pip uninstall {' '.join(found)}, then install one"
        )
    return f"{found[0] if found else 'module faiss'} {_version()} is installed"


def import_faiss(factory: str) -> Any:
    """The module `faiss`. Raises `MissingDependencyError` naming the extra that installs it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(f"index {factory!r} needs FAISS: {INSTALL}; 'Flat' works without") from error
    return faiss


def _version() -> str:
    import faiss

    return str(faiss.__version__)
