"""The machinery of the op benchmarks on tiny shapes: what is written, what is checked, who may fail. No times."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from benchmarks import gpu_smoke, results, run
from benchmarks.ops import eager, measure, problems, suite
from benchmarks.ops.cases import cases
from benchmarks.ops.providers import BASELINE, Attempt, Provider, providers
from benchmarks.ops.suite import SuiteError, run_case

MIB = 2**20
LIMITS = {"copy": {"per_second": 1e10}, "float32": {"per_second": 1e11}}
BY_NAME = {provider.name: provider for provider in providers(everything=True)}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_case(op):
    return next(case for case in cases("cpu", "small", ("contrastive", "pool", "pairwise")) if case.op == op)


def small_run(*contestants, op="contrastive", rounds=2):
    return run_case(small_case(op), list(contestants), rounds, measure.CpuClock(1), LIMITS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of `benchmarks.run` with the contestants that need no compiler."""
    folder = tmp_path_factory.mktemp("suite") / "out"
    names = ["eager padded fp32", "inf-cl", "ours (auto)", "ours (torch)"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "OVERHEAD_CALLS", 2)
        patch.setattr(suite, "SAMPLE_SECONDS", 0.0)
        run.main(["--suite", "ops", "--shapes", "small", "--rounds", "3", "--out", str(folder), "--providers", *names])
    return folder


def test_a_run_leaves_its_four_files_and_nothing_else(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        "results.jsonl",
        "results.md",
        "roofline.png",
        "system.json",
    ]
    assert (finished / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_every_op_has_rows_with_valid_fields(finished):
    rows = [row for row in results.read(finished)[1] if row["status"] == "ok" and "points" not in row]
    assert {row["op"] for row in rows} == {"contrastive", "pool", "pairwise", "step"}
    assert {row["group"] for row in rows} == {"contrastive", "pool", "pairwise", "overhead"}
    for row in rows:
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
        assert 0 < row["ratio"]["p20"] <= row["ratio"]["p50"] <= row["ratio"]["p80"]
        assert row["rounds"] == 3
        assert row["peak_bytes"] >= 0
        if row["provider"] == BASELINE:
            assert row["ratio"]["p50"] == 1
        if row["group"] != "overhead":
            assert row["tflops"] > 0
            assert row["gbps"] > 0
            assert row["of_ceiling"] > 0
            assert row["limit"] in ("compute", "memory")


def test_ours_is_close_to_float64_and_says_what_it_dispatched_to(finished):
    rows = [row for row in results.read(finished)[1] if row["provider"].startswith("ours") and "points" not in row]
    assert rows
    for row in rows:
        assert row["status"] == "ok"
        assert max(row["errors"].values()) < 1e-5
        assert sum(row["dispatch"].values()) >= 1
        assert all("/cpu/" in name for name in row["dispatch"])


def test_a_rival_that_cannot_run_is_named_with_the_reason(finished):
    rows = [row for row in results.read(finished)[1] if row["provider"] == "inf-cl"]
    assert rows
    assert {row["status"] for row in rows} == {"not run"}
    reasons = {row["reason"] for row in rows}
    assert "has no masks; see the shape without masks" in reasons
    assert reasons & {"not installed; pip install 'ance_fast[bench]'", "needs CUDA"}
    assert f"- inf-cl: not run: {rows[0]['reason']}" in (finished / "results.md").read_text(encoding="utf-8")


def test_the_memory_of_the_loss_is_fitted_beside_its_formula(finished):
    rows = {row["provider"]: row for row in results.read(finished)[1] if "points" in row}
    assert set(rows) == {BASELINE, "ours (auto)", "ours (torch)"}
    for row in rows.values():
        assert len(row["points"]) == 3
        assert math.isfinite(row["bytes_per_row"])
        assert row["formula_bytes_per_row"] == 1.2 * 16 * 4


def test_the_system_file_says_what_ran_where(finished):
    system = json.loads((finished / "system.json").read_text(encoding="utf-8"))
    assert {"cpu", "gpu", "versions", "source", "threads", "date", "strict", "ops", "ceilings", "rivals"} <= set(system)
    assert system["threads"] == 1
    assert set(system["source"]) == {"commit", "dirty"}
    assert system["ceilings"]["copy"]["per_second"] > 0


@pytest.mark.parametrize("masks", [False, True])
def test_the_exact_loss_is_what_autograd_finds(masks, monkeypatch):
    monkeypatch.setattr(problems, "LOGITS_AT_ONCE", 5 * 40)
    problem = problems.contrastive(17, 40, 8, torch.float64, "cpu", masks=masks)
    loss = eager.contrastive(problem)
    for got, want in zip(problem.exact(), (loss, *torch.autograd.grad(loss, problem.leaves)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op", ["contrastive", "pool", "pairwise", "step"])
def test_what_a_problem_counts_is_positive_and_its_gradients_fit_its_leaves(op):
    problem = small_case(op).make()
    assert problem.flops > 0
    assert problem.bytes > 0
    assert [gradient.shape for gradient in problem.exact()[1:]] == [leaf.shape for leaf in problem.leaves]


def test_padded_pooling_is_checked_in_the_packed_layout():
    (row,) = small_run(BY_NAME["eager padded fp32"], op="pool")
    assert max(row["errors"].values()) < 1e-5
    assert row["ratio"] is None  # there is no baseline beside it


def test_peak_memory_is_what_is_held_at_once():
    free = [torch.ones(MIB) for _ in range(20)]  # blocks that malloc could hand out again

    def call():
        dropped = torch.ones(24 * MIB // 4)
        del dropped
        return [torch.ones(16 * MIB // 4) for _ in range(2)]

    free.clear()
    assert measure.cpu_peak(call) == pytest.approx(32 * MIB, abs=MIB)


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(measure, "_high_water_mark", lambda: 1 / 0)
    assert measure.cpu_peak(lambda: None) is None


def broken(*, ours, late=False):
    """A provider that fails at once, or after its first results were right."""
    calls = []

    def attempt(problem, case):
        def forward():
            calls.append(1)
            if not late or len(calls) > 1:
                raise RuntimeError("no such kernel\ndetails")
            return eager.contrastive(problem)

        return Attempt(forward, problem.leaves)

    return Provider("broken", "fails", frozenset({"contrastive"}), attempt, ours=ours)


@pytest.mark.parametrize("late", [False, True])
def test_a_failing_rival_does_not_stop_the_others(late, monkeypatch):
    monkeypatch.setattr(measure, "peak_bytes", lambda call, device: 0)
    rows = small_run(BY_NAME[BASELINE], broken(ours=False, late=late), BY_NAME["ours (auto)"])
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["reason"] == "RuntimeError: no such kernel"
    assert "ms" not in rows[1]


def test_an_error_of_ours_stops_the_run():
    with pytest.raises(SuiteError, match="broken on contrastive .*no such kernel"):
        small_run(BY_NAME[BASELINE], broken(ours=True))


def test_a_wrong_result_of_ours_stops_the_run_and_a_rivals_is_reported():
    def attempt(problem, case):
        return Attempt(lambda: eager.contrastive(problem) * 1.5, problem.leaves)

    wrong = Provider("wrong", "off by half", frozenset({"contrastive"}), attempt)
    (row,) = small_run(wrong)
    assert row["errors"]["result"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(SuiteError, match="is off by 5.0e-01 of the largest element"):
        small_run(dataclasses.replace(wrong, ours=True))


def test_not_a_number_counts_as_an_error():
    def attempt(problem, case):
        return Attempt(lambda: eager.contrastive(problem) * math.nan, problem.leaves)

    with pytest.raises(SuiteError, match="off by inf"):
        small_run(Provider("nan", "", frozenset({"contrastive"}), attempt, ours=True))


def test_bf16_runs_on_a_cpu_only_when_asked_for():
    case = small_case("contrastive")
    slow = {everything: {p.name: p for p in providers(everything)}["eager autocast"] for everything in (False, True)}
    assert "--all" in slow[False].absent(case, case.make())
    assert slow[True].absent(case, case.make()) is None


def test_the_smoke_run_covers_every_dtype(capsys):
    gpu_smoke.main(["--device", "cpu"])
    printed = capsys.readouterr().out
    assert all(dtype in printed for dtype in ("float32", "float16", "bfloat16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "-1"], "at least 1"),
        (["--providers", "ourz"], "unknown provider 'ourz'; there are: eager fp32"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU is what is tested"),
        ),
    ],
)
def test_unusable_options_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
