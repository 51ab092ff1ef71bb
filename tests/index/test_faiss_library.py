from __future__ import annotations

import pytest

from ance_fast.errors import MissingDependencyError
from ance_fast.index import faiss_library


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    class Distribution:
        def __init__(self, name: str) -> None:
            self.metadata = {"Name": name}

    monkeypatch.setattr("importlib.metadata.distributions", lambda: [Distribution(n) for n in ("numpy", *names)])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("faiss-cpu", "faiss-cpu"), ("faiss-gpu-cu12", "faiss-gpu"), ("faiss-gpu-cuvs-cu12", "faiss-gpu-cuvs")],
)
def test_the_kind_is_the_one_distribution_installed(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, name)
    assert faiss_library.faiss_kind() == kind
    assert faiss_library.faiss_reason().startswith(f"{name} ")


def test_two_distributions_at_once_are_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "faiss-gpu", "faiss-cpu", "faissy")
    assert faiss_library.faiss_kind() in ("faiss-cpu", "faiss-gpu")
    assert "faiss-cpu and faiss-gpu are both installed" in faiss_library.faiss_reason()
    assert "pip uninstall faiss-cpu faiss-gpu" in faiss_library.faiss_reason()


@pytest.mark.usefixtures("without_faiss")
def test_without_faiss_there_is_no_kind_and_the_reason_says_what_to_install() -> None:
    assert faiss_library.faiss_kind() is None
    assert "pip install 'ance_fast[cpu]'" in faiss_library.faiss_reason()
    with pytest.raises(MissingDependencyError, match=r"'HNSW32' needs FAISS: pip install 'ance_fast\[cpu\]'"):
        faiss_library.import_faiss("HNSW32")
