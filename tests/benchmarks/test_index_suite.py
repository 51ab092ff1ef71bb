"""The index suite compares what it times. Its part for a GPU runs on the host here, on FAISS' index for the CPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from benchmarks import index, index_cuda, topk
from benchmarks.ops.measure import CpuClock

pytestmark = pytest.mark.timeout(60)
OURS = ["ours, .cpu()", "ours, ring"]
THEIRS = ["faiss, .cpu()", "faiss, blocks at hand", "faiss, ring"]


@pytest.fixture
def feed() -> index_cuda.Feed:
    return index_cuda.Feed.make(rows=8, dim=5, count=7, device="cpu")


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    build = SimpleNamespace(
        StandardGpuResources=lambda: SimpleNamespace(syncDefaultStreamCurrentDevice=lambda: None),
        get_num_gpus=lambda: 1,
        GpuIndexFlatIP=lambda resources, dim: faiss.IndexFlatIP(dim),
    )
    monkeypatch.setattr(index_cuda, "faiss_with_gpu", lambda: (build, ""))


def test_every_way_to_feed_is_measured_and_the_first_is_what_ratios_refer_to(feed, gpu_build):
    rows = index_cuda.feeding(feed, "cpu", rounds=3)
    assert [row["provider"] for row in rows] == THEIRS + OURS
    assert rows[0]["ratio"] == {"p20": 1, "p50": 1, "p80": 1}
    for row in rows:
        assert (row["status"], row["rounds"]) == ("ok", 3)
        assert row["vectors_per_second"] == pytest.approx(56e3 / row["ms"]["p50"])


def test_without_a_gpu_part_of_faiss_the_reason_stands_in_its_place_and_the_rest_is_measured(feed):
    rows = index_cuda.feeding(feed, "cpu", rounds=1)
    assert [row["provider"] for row in rows] == THEIRS + OURS
    for row in rows[:3]:
        assert row["status"] == "not run"
        assert "faiss-cpu" in row["reason"]
        assert "pip install 'ance_fast[gpu]'" in row["reason"]
    assert rows[3]["ratio"]["p50"] == 1
    lines = index_cuda.table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ours")] == [f"| {name}" for name in OURS]
    assert [line.partition(": ")[0] for line in lines if line.startswith("- ")] == [f"- {name}" for name in THEIRS]


@pytest.mark.parametrize("harm", ["lost", "moved", "changed"])
def test_an_index_that_holds_other_rows_ends_the_run(feed, gpu_build, monkeypatch, harm):
    class Harmful(faiss.IndexFlatIP):
        def add(self, rows):
            rows = np.roll(rows, 1, axis=0) if harm == "moved" else rows[1:] if harm == "lost" else rows + 1e-6
            super().add(np.ascontiguousarray(rows))

    build, _ = index_cuda.faiss_with_gpu()
    build.GpuIndexFlatIP = lambda resources, dim: Harmful(dim)
    with pytest.raises(SystemExit, match=r"the index of 'faiss, .cpu\(\)' does not hold the rows it was fed"):
        index_cuda.feeding(feed, "cpu", rounds=1)


def test_an_error_of_the_index_ends_the_run(feed, gpu_build):
    def full(resources, dim):
        return SimpleNamespace(add=lambda rows: (_ for _ in ()).throw(MemoryError("the GPU is full")))

    build, _ = index_cuda.faiss_with_gpu()
    build.GpuIndexFlatIP = full
    with pytest.raises(MemoryError, match="the GPU is full"):
        index_cuda.through_ring(feed, lambda feed: index_cuda.faiss_target(build, build.StandardGpuResources(), feed))()


def test_a_slot_stays_with_an_index_that_reads_it_late(feed, gpu_build):
    """As FAISS does with page-locked memory: what is added is read when the stream is waited for."""
    build, _ = index_cuda.faiss_with_gpu()
    late: list[np.ndarray] = []
    held = faiss.IndexFlatIP(feed.dim)
    build.GpuIndexFlatIP = lambda resources, dim: SimpleNamespace(add=late.append, reconstruct_n=held.reconstruct_n)
    resources = SimpleNamespace(syncDefaultStreamCurrentDevice=lambda: held.add(late.pop()))
    index_cuda.through_ring(feed, lambda feed: index_cuda.faiss_target(build, resources, feed))()
    assert feed.is_held(held.reconstruct_n(0, held.ntotal))
    assert not late


def test_searches_are_held_against_float64_and_what_faiss_cannot_do_is_said(monkeypatch):
    case = topk.make_case(500, 16, 4, 10, torch.float32, "cpu")
    rows = index_cuda.searching(case, 2, CpuClock(1))
    assert (rows[0]["provider"], rows[0]["status"]) == (index_cuda.KNN, "not run")
    measured = {row["provider"]: row for row in rows[1:]}
    assert {"torch mm + topk", "ours"} <= measured.keys()
    assert all(row["status"] == "ok" and row["positions_differing"] == 0 for row in measured.values())

    def refuses():
        raise TypeError("xb must be float32 or float16")

    def answer():
        return topk.mm_and_topk(case)

    monkeypatch.setattr(index_cuda, "faiss_with_gpu", lambda: (None, ""))
    monkeypatch.setattr(topk, "contestants", lambda case, threads: {index_cuda.KNN: refuses, "ours": answer})
    rows = index_cuda.searching(case, 1, CpuClock(1))
    assert [(row["provider"], row["status"]) for row in rows] == [(index_cuda.KNN, "not run"), ("ours", "ok")]
    assert "knn_gpu does not take torch.float32: xb must be float32 or float16" in rows[0]["reason"]
    monkeypatch.setattr(topk, "contestants", lambda case, threads: {index_cuda.KNN: answer, "ours": answer})
    assert [row["status"] for row in index_cuda.searching(case, 1, CpuClock(1))] == ["ok", "ok"]
    swapped = (torch.zeros(4, 10), torch.arange(10).repeat(4, 1))
    monkeypatch.setattr(topk, "contestants", lambda case, threads: {index_cuda.KNN: answer, "ours": lambda: swapped})
    with pytest.raises(SystemExit, match="ours differs from float64"):
        index_cuda.searching(case, 1, CpuClock(1))


@pytest.mark.parametrize(("missing", "reason"), [("faiss", "not installed"), ("gpu", "without GPU support")])
def test_which_part_of_faiss_is_missing_is_said(monkeypatch, missing, reason):
    if missing == "faiss":
        monkeypatch.setattr(index_cuda.importlib.util, "find_spec", lambda name: None)
    found, said = index_cuda.faiss_with_gpu()
    assert found is None
    assert reason in said


def test_faiss_for_a_gpu_without_one_is_said(monkeypatch):
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert "sees no GPU" in index_cuda.faiss_with_gpu()[1]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    assert index_cuda.faiss_with_gpu() == (faiss, "")


def test_results_are_written_and_printed_as_one_document(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(index.SHAPES, "small", (3000, 16, 20))
    monkeypatch.setitem(index.APPROXIMATE, "small", ("IVF16,Flat", "HNSW16"))
    index.main(["--out", str(tmp_path), "--shapes", "small", "--rounds", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "index.json").read_text())
    assert result["system"]["command"][2:7] == ["benchmarks.run", "--suite", "index", "--out", tmp_path.name]
    assert [row["what"] for row in result["rows"]][:2] == ["build Flat", "search Flat"]
    assert all(row["faiss_over_ours"] > 0 for row in result["rows"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU is what is tested")
def test_a_gpu_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        index.main(["--out", str(tmp_path), "--device", "cuda"])
    assert "torch sees no GPU here" in capsys.readouterr().err
