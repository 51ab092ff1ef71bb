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
NOT_INSTALLED = "not installed; pip install 'ance_fast[bench]'"
NEEDS_CUDA = "needs CUDA: it has this loss as Triton kernels alone"
RIVALS = {"liger-kernel", "inf-cl", "cut-cross-entropy exact", "cut-cross-entropy torch_compile"}
BY_NAME = {provider.name: provider for provider in providers()}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_case(op, shape=""):
    chosen = cases("cpu", "small", ("contrastive", "pool", "pairwise"))
    return next(case for case in chosen if case.op == op and shape in case.shape)


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
    assert reasons & {NOT_INSTALLED, NEEDS_CUDA}
    assert f"- inf-cl: not run: {rows[0]['reason']}" in (finished / "results.md").read_text(encoding="utf-8")


def test_the_memory_of_the_loss_is_fitted_beside_its_formula(finished):
    rows = [row for row in results.read(finished)[1] if "points" in row]
    shapes = [f"B=32,64,96 N=128 D=16, {masks}" for masks in ("masks by doc_ids", "no masks")]
    assert [(row["shape"], row["provider"]) for row in rows] == [
        (shape, provider) for shape in shapes for provider in (BASELINE, "ours (auto)", "ours (torch)")
    ]
    for row in rows:
        assert math.isfinite(row["bytes_per_row"])
        assert row["formula_bytes_per_row"] == pytest.approx(1.2 * 16 * 4)
        assert [point["batch"] for point in row["points"]] == [32, 64, 96]
        for point in row["points"]:
            allowed = 1.2 * (256 * 128 * 4 + (point["batch"] + 128) * 16 * 4)
            assert point["formula_bytes"] == pytest.approx(allowed)
            assert point["within"] == (point["bytes"] <= allowed)
        assert row["within"] == all(point["within"] for point in row["points"])
        assert f"- {results.memory_verdict(row)}" in (finished / "results.md").read_text(encoding="utf-8")


def test_the_memory_verdict_names_what_is_beyond_the_formula():
    points = [
        {"batch": batch, "bytes": size, "formula_bytes": 100.0, "within": size <= 100}
        for batch, size in ((1, 80), (2, 120), (3, 160))
    ]
    row = {"provider": "p", "points": points, "within": False, "bytes_per_row": 40.0, "formula_bytes_per_row": 3.0}
    assert results.memory_verdict(row) == (
        "p: peak memory BEYOND what is allowed: 0.80 (B=1), 1.20 (B=2), 1.60 (B=3) of it; "
        "fitted 40 bytes a row, formula 3"
    )
    unknown = {"provider": "p", "within": None, "reason": "why"}
    assert results.memory_verdict(unknown) == "p: peak memory not measured (why)"


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


@pytest.mark.parametrize(("negatives", "each"), [(1, 7), (4, 25), (7, 40)])
def test_pairwise_flops_are_those_of_the_cheaper_way(negatives, each):
    problem = problems.pairwise(3, negatives, 8, torch.float32, "cpu")
    assert problem.flops == each * 3 * 8
    assert problem.bytes == 2 * (2 + negatives) * 3 * 8 * 4


def test_pooling_counts_the_tokens_it_must_read():
    def counted(mode, norm, backward):
        problem = problems.pool((2, 3), 8, torch.float32, "cpu", mode=mode, norm=norm, backward=backward)
        return problem.flops, problem.bytes / (8 * 4)

    assert counted("mean", "none", False) == (5 * 8, 5 + 2)
    assert counted("cls", "l2", False) == (4 * 2 * 8, 2 + 2)
    assert counted("mean", "l2", True) == (5 * 8 + 2 * 4 * 2 * 8, 5 + 2 + 2 + 5)


def test_sequences_of_one_length_are_padded_by_nothing():
    case = small_case("pool", "16 sequences of 9 tokens")
    problem = case.make()
    assert set(problem.lengths) == {9}
    (padded, *_) = BY_NAME["eager padded fp32"].attempt(problem, case).leaves
    assert torch.equal(padded.flatten(0, 1), problem.hidden)


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


def test_only_what_has_no_form_for_a_cpu_does_not_run_there():
    for case in cases("cpu", "small", ("contrastive", "pool", "pairwise")):
        if "masks by" in case.shape:
            continue
        absent = {p.name: p.absent(case, case.make()) for p in BY_NAME.values() if case.op in p.ops}
        absent = {name: reason for name, reason in absent.items() if reason and "C++ compiler" not in reason}
        assert absent.keys() <= {"torch linear_cross_entropy", *RIVALS}
        assert all(reason in (NOT_INSTALLED, NEEDS_CUDA) for name, reason in absent.items() if name in RIVALS)
        assert absent.get("cut-cross-entropy torch_compile") != NEEDS_CUDA


def test_what_cut_cross_entropy_has_for_a_cpu_gives_the_exact_loss():
    provider, case = BY_NAME["cut-cross-entropy torch_compile"], small_case("contrastive", "no masks")
    if provider.absent(case, case.make()):
        provider = BY_NAME[BASELINE]
    with torch.compiler.set_stance("force_eager"):
        (row,) = suite.check_case(case, [provider])
    assert row["status"] == "ok", row["reason"]
    assert max(row["errors"].values()) < 1e-5


class FixedClock:
    """Every call of a contestant takes as long as `seconds` says for it."""

    name = "fixed"

    def __init__(self):
        self.seconds = {}

    def sample(self, call, repeats):
        name = call()
        return self.seconds[name], self.seconds[name]


def test_a_slow_rival_is_timed_in_fewer_rounds_against_the_baseline_of_those_rounds():
    clock = FixedClock()
    clock.seconds = {BASELINE: 0.5, "slow": 5.0, "slowish": 1.2, "ours": 5.0}
    contests = []
    for name in clock.seconds:
        provider = dataclasses.replace(broken(ours=name == "ours"), name=name)
        contests.append(suite.Contest(provider, {}, step=lambda name=name: name))
    suite._time(small_case("contrastive"), contests, 7, clock)
    rounds = {contest.provider.name: list(contest.samples) for contest in contests}
    assert rounds == {BASELINE: [*range(7)], "slow": [0, 3, 5], "slowish": [0, 2, 3, 5, 6], "ours": [*range(7)]}
    assert [contest.row["rounds"] for contest in contests] == [7, suite.FEWEST_ROUNDS, 5, 7]
    assert suite._ratio(contests[1], contests[0]) == {"p20": 0.1, "p50": 0.1, "p80": 0.1}


@pytest.mark.parametrize("rounds", [1, 2, 7, 30])
def test_planned_rounds_are_spread_over_all(rounds):
    for planned in range(1, rounds + 1):
        chosen = [number for number in range(rounds) if suite._takes_part(number, planned, rounds)]
        assert len(chosen) == planned
        assert chosen[0] == 0


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
        run.main(["--suite", "ops", "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
