"""The suite of refresh modes: what it trains on, what it counts, and that it goes on where it was cut off."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data import load_dataset
from ance_fast.evaluation import paired_significance
from ance_fast.training.negatives import NegativeTable
from benchmarks.refresh import analysis, bench, overhead, peer, recorder, run
from benchmarks.refresh.data import BLOCK, chosen_rows, write_part
from benchmarks.refresh.settings import PEER, Plan, ance_config

SMALL = ["--passages", "60", "--steps", "4", "--batch", "4", "--max-length", "16", "--points", "2", "--pairs", "3"]
SMALL += ["--threads", "1", "--layers", "1", "--seeds", "3"]


def result(mode, seed, seconds, values, **more):
    """What the file of a run of 4 steps of 8 queries says; dev was measured at steps 2 and 4."""
    points = [{"step": step, "seconds": seconds[step - 1], "RR@10": v} for step, v in zip((2, 4), values, strict=True)]
    about = {"mode": mode, "seed": seed, "loss": "contrastive", "seconds": seconds, "curve": points}
    return {
        **about,
        "settings": {"batch": 8, "first_refresh": 1},
        "extra": {"seconds_refresh": 1.0, "refreshes": [{}]},
        **more,
    }


@settings(deadline=None)
@given(st.data())
def test_a_part_is_of_the_size_asked_for_and_holds_all_passages_of_its_dev_queries(data):
    total = data.draw(st.integers(1, 400))
    rows = st.lists(st.integers(0, total - 1), min_size=1, max_size=4)
    relevant = data.draw(st.lists(rows, max_size=30))
    count = data.draw(st.integers(1, total + 5))
    chosen = chosen_rows(total, relevant, count)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(total))
    assert len(chosen) <= count
    some_dev = {row for rows in relevant for row in rows}
    others = [row for row in chosen if row not in some_dev]
    assert count - len(chosen) == 0 or len(others) == total - len(some_dev) or count > total
    whole = [set(rows) <= set(chosen) for rows in relevant]
    touched = [bool(set(rows) & set(chosen)) for rows in relevant]
    if count >= 2 * len(some_dev):
        assert all(whole)
    assert not any(
        met and not full and not any(set(rows) & set(other) for other, f in zip(relevant, whole, strict=True) if f)
        for rows, met, full in zip(relevant, touched, whole, strict=True)
    )


def test_passages_that_no_dev_query_is_about_come_in_blocks_of_neighbours():
    chosen = np.array(chosen_rows(10_000, [[5000], [5001, 7000]], 3 + 4 * BLOCK))
    assert {5000, 5001, 7000} <= set(chosen.tolist())
    breaks = int((np.diff(chosen) > 1).sum())
    assert len(chosen) == 3 + 4 * BLOCK
    assert breaks <= 4 + 2  # four blocks, and the dev passages away from them


def test_the_part_is_a_data_set_of_its_own_whose_queries_all_have_an_answer(tmp_path, wiki):
    write_part(str(wiki), tmp_path / "part", 60)
    for split in ("train", "dev"):
        part, whole = load_dataset(str(tmp_path / "part"), split=split), load_dataset(str(wiki), split=split)
        ids = {document.id for document in part.corpus}
        assert len(ids) == 60
        assert part.queries
        for query, text in part.queries.items():
            assert text == whole.queries[query]
            assert part.qrels[query] == {d: grade for d, grade in whole.qrels[query].items() if d in ids}


def test_time_to_a_target_is_read_off_the_lines_between_the_points():
    points = [(0.0, 0.2), (10.0, 0.4), (20.0, 0.3), (40.0, 0.8)]
    assert analysis.time_to(points, 0.1) is None, "the untrained encoder is there already"
    assert analysis.time_to(points, 0.3) == pytest.approx(5)
    assert analysis.time_to(points, 0.4) == 10
    assert analysis.time_to(points, 0.55) == pytest.approx(30)
    assert analysis.time_to(points, 0.81) is None


def test_targets_are_sync_s_best_and_the_best_that_all_reached_seed_by_seed():
    results = [
        result("none", 0, [1, 2, 3, 4], [0.2, 0.3]),
        result("sync", 0, [2, 4, 6, 8], [0.5, 1.0]),
        result(PEER, 0, [4, 8, 12, 16], [0.5, 0.98]),
        result("sync", 1, [1, 2, 3, 4], [0.4, 0.5]),
        result(PEER, 1, [1, 4, 6, 8], [0.4, 0.5]),
        result("none", 1, [1, 2, 3, 4], [0.2, 0.3]),
        result("sync", 2, [1, 2, 3, 4], [0.9, 0.9]),  # alone: the others were not run
    ]
    rows = {row["target"]: row for row in analysis.time_to_quality(results, 0.0)}
    shares = [f"{share}% of the way to sync's best" for share in (90, 95, 98)]
    assert list(rows) == [*shares, "the best that all that refresh reached"]
    row = rows[shares[0]]
    assert row["values"] == pytest.approx({0: 0.9, 1: 0.45})
    assert row["seconds"]["sync"] == pytest.approx({0: 7.2, 1: 3.0})
    assert row["seconds"]["none"] == {0: None, 1: None}
    slower = [8 + 8 * 0.4 / 0.48, 6.0]
    ratios = [slower[0] / 7.2, slower[1] / 3.0]
    told = row["faster"][PEER]["sync"]
    assert told == pytest.approx(
        {"median": sum(ratios) / 2, "min": min(ratios), "max": max(ratios), "seeds": 2, "of": 2}
    )
    assert row["faster"][PEER]["none"] == {"median": None, "min": None, "max": None, "seeds": 0, "of": 2}
    assert rows["the best that all that refresh reached"]["values"] == pytest.approx({0: 0.98, 1: 0.5})


def test_throughput_counts_from_the_first_refresh_on_against_the_same_seed_without_one():
    asynchronous = {"seconds_refresh": 0.5, "worker_busy": 0.75, "refreshes": [{}, {}, {}]}
    results = [
        result("none", 0, [9, 10, 11, 12], [0, 0]),
        result("sync", 0, [9, 11, 13, 15], [0, 0]),
        result("none", 1, [5, 6, 7, 8], [0, 0]),
        result("async", 1, [5, 7.5, 10, 12.5], [0, 0], extra=asynchronous),
    ]
    rows = {row["mode"]: row for row in analysis.throughput(results)}
    assert rows["none"]["queries_per_second"] == {"median": 8, "min": 8, "max": 8}
    assert rows["sync"]["relative"]["median"] == pytest.approx(0.5)
    assert rows["async"]["relative"]["median"] == pytest.approx(0.4)
    assert rows["async"]["waited"]["median"] == pytest.approx(0.5 / 7.5)
    assert rows["async"]["worker_busy"]["median"] == 0.75
    assert rows["async"]["refreshes"]["median"] == 3
    assert "worker_busy" not in rows["sync"]


def test_quality_is_tested_query_by_query_for_each_seed_and_for_the_means_over_seeds():
    generator = np.random.default_rng(0)

    def of(mode, seed, gain):
        values = {m: {f"q{i}": float(v) for i, v in enumerate(generator.random(30) / 2 + gain)} for m in run.METRICS}
        return result(mode, seed, [1, 2, 3, 4], [0, 0], per_query=values)

    results = [of(mode, seed, gain) for seed in (0, 1) for mode, gain in (("none", 0.0), ("once", 0.2), ("sync", 0.4))]
    rows = {row["mode"]: row for row in analysis.quality(results)}
    assert list(rows) == ["none", "once", "sync"]
    assert "p RR@10" not in rows["sync"]
    found = {(r["mode"], r["seed"]): analysis.evaluation_of(r) for r in results}
    told = rows["once"]["p RR@10"]
    expected = paired_significance(found["sync", 1], found["once", 1], "RR@10")
    assert told["seeds"][1]["t"] == expected.p_value
    assert told["seeds"][1]["difference"] == expected.difference
    means = [np.mean([found["sync", s]["RR@10"] - found["once", s]["RR@10"] for s in (0, 1)])]
    assert told["all"]["difference"] == pytest.approx(means[0])
    assert rows["none"]["RR@10"]["max"] == max(found["none", s]["RR@10"] for s in (0, 1))


def test_overhead_pairs_each_refreshing_step_with_the_plain_one_beside_it():
    # Steps 4 and 7 are plain (1 s), 5 and 6 refresh: 2.2 s, then 2.6 s; the slice alone takes 1 s.
    assert [overhead.refreshes(step) for step in range(4, 8)] == [False, True, True, False]
    told = overhead.summary([1.0, 2.2, 2.6, 1.0], [1.0, 1.0])
    assert told["pairs"] == 2
    assert told["step_ratio"]["p50"] == pytest.approx((1.1 + 1.3) / 2)
    assert told["cost_ratio"]["p50"] == pytest.approx((1.2 + 1.6) / 2)
    assert told["seconds"] == pytest.approx({"refreshing step": 2.4, "plain step": 1.0, "slice alone": 1.0})


def test_steps_take_turns_between_refreshing_and_drawing_from_what_is_there():
    class Inner:
        generation, calls = None, ()

        def before_step(self, step):
            self.generation = SimpleNamespace(table="as it was")
            self.calls += (step,)
            return {"at": step}

        def table_for(self, queries, step):
            return "mined"

        def ages(self, passages, step):
            return "ages"

    turns = overhead.TakingTurns(Inner())
    assert [turns.before_step(step) for step in range(6)] == [{"at": 0}, {"at": 1}, {"at": 2}, None, None, {"at": 5}]
    assert turns.inner.calls == (0, 1, 2, 5)
    assert [turns.table_for(None, step) for step in range(4, 8)] == ["as it was", "mined", "mined", "as it was"]
    assert turns.ages(None, 4) == "ages"


def test_the_judge_measures_the_weights_it_is_given(tmp_path, tiny, wiki):
    options = run.parse(["--out", "x", "--data", str(wiki), "--model", str(tiny("Bert")), *SMALL])
    made = bench.Bench(str(wiki), run.settings_of(options), tmp_path)
    first = recorder.copied(made.encoder().backbone.model)
    other = {name: torch.zeros_like(value) for name, value in first.items()}
    untrained = made.measure(None)
    # All vectors of the others are alike, so that every passage comes in the order of the corpus.
    assert made.measure(other).per_query != untrained.per_query
    assert made.measure(first).per_query == untrained.per_query
    assert made.measure({**first, "pooler.dense.bias": torch.zeros(32)}).per_query == untrained.per_query
    name = next(iter(first))
    with pytest.raises(RuntimeError, match=f"weights without .*{name}"):
        made.measure({key: value for key, value in first.items() if key != name})


def test_the_clock_of_a_run_does_not_count_copying_weights_and_goes_on_over_trainers(monkeypatch):
    time = SimpleNamespace(now=100.0)

    def copied(module):
        time.now += 50
        return {}

    monkeypatch.setattr(recorder, "time", SimpleNamespace(perf_counter=lambda: time.now))
    monkeypatch.setattr(recorder, "copied", copied)
    watch = recorder.Recorder(None, [2, 3])
    time.now = 200.0
    watch.start()
    for global_step in (1, 2, 1, 2):  # two trainers of two steps each
        time.now += 10
        watch.on_step_end(None, SimpleNamespace(global_step=global_step), None)
    assert watch.trained.seconds == [10, 20, 30, 40]
    assert [step for step, _ in watch.trained.weights] == [2, 3]


def test_the_peer_s_first_negatives_are_candidates_of_their_queries():
    candidates = np.array([[3, 4, -1], [5, -1, -1]], dtype=np.int32)
    table = NegativeTable(candidates, np.zeros((2, 3), np.float32), "bm25", 0, 0)
    queries = np.array([0, 1] * 50)
    drawn = peer.drawn_from(table, queries, seed=1)
    assert set(drawn[queries == 0].tolist()) == {3, 4}
    assert set(drawn[queries == 1].tolist()) == {5}
    empty = NegativeTable(np.full((1, 2), -1, np.int32), np.zeros((1, 2), np.float32), "bm25", 0, 0)
    with pytest.raises(RuntimeError, match="no BM25 candidate"):
        peer.drawn_from(empty, np.array([0]), seed=1)


def test_every_seed_begins_with_another_contestant_and_runs_all():
    options = run.parse(["--out", "x", "--data", "y", "--modes", "none,sync,rolling", "--seeds", "0,1", "2"])
    by_seed = {seed: [p.name for p in run.plans(options) if p.seed == seed] for seed in (0, 1, 2)}
    assert len({names[0].rpartition("-")[0] for names in by_seed.values()}) == 3
    assert len({frozenset(name.rpartition("-")[0] for name in names) for names in by_seed.values()}) == 1
    assert len(by_seed[0]) == 3 + len(analysis.QUALITY)
    without = run.parse(["--out", "x", "--data", "y", "--parts", "throughput"])
    assert PEER not in {plan.mode for plan in run.plans(without)}


def test_modes_differ_in_nothing_but_how_they_refresh(tmp_path):
    shared = run.settings_of(run.parse(["--out", "x", "--data", "y", "--steps", "40"]))
    none, sync, rolling = (
        vars(ance_config(shared, Plan(mode, "contrastive", 0), tmp_path)) for mode in ("none", "sync", "rolling")
    )
    assert {name for name in none if none[name] != sync[name]} == {"refresh"}
    assert {name for name in sync if sync[name] != rolling[name]} == {"refresh", "max_staleness"}
    # Sync's negatives are at most this old, too.
    assert rolling["max_staleness"] == shared.interval - 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--steps", "3"], "must be at least 4"),
        (["--passages", "0"], "--passages must be positive"),
        (["--parts", "speed"], "'speed' is none of time-to-quality"),
        (["--modes", "rolling"], "measured against sync"),
        (["--modes", "sync"], "without refresh; add none"),
        (["--seeds", "one"], "invalid literal"),
        (["--points", "0"], "--points"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, said, capsys):
    with pytest.raises(SystemExit):
        run.parse(["--out", "x", *wrong])
    assert said in capsys.readouterr().err


def test_a_suite_that_was_cut_off_goes_on_with_what_is_missing(tmp_path, tiny, wiki, capsys, monkeypatch):
    monkeypatch.setattr(run, "QUALITY", ("none", "sync"))
    arguments = ["--out", str(tmp_path), "--data", str(wiki), "--model", str(tiny("Bert")), *SMALL]
    arguments += ["--modes", f"none,sync,{PEER}"]
    trained = []

    def stops_after_three(bench, plan):
        if plan.loss == "pairwise" and len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(plan.name)
        return measured(bench, plan)

    warmed = []
    monkeypatch.setattr(run, "warm_up", lambda bench, todo: warmed.extend(plan.name for plan in todo))
    measured = run.result_of
    monkeypatch.setattr(run, "result_of", stops_after_three)
    with pytest.raises(KeyboardInterrupt):
        run.main(arguments)
    assert trained == ["contrastive-none-3", "contrastive-sync-3", f"contrastive-{PEER}-3"]
    monkeypatch.setattr(run, "result_of", measured)
    with pytest.raises(SystemExit, match="holds results; --resume keeps them"):
        run.main(arguments)
    with pytest.raises(SystemExit, match="other settings \\(steps: 4 then, 8 now\\)"):
        run.main([*arguments, "--resume", "--steps", "8"])
    warmed.clear()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data" / "runs").iterdir()}
    run.main([*arguments, "--resume"])
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data" / "runs").iterdir()}
    assert before == {name: after[name] for name in before}
    assert warmed == ["pairwise-none-3", "pairwise-sync-3"]
    assert set(after) - set(before) == {f"{name}.json" for name in warmed}
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    report = json.loads((tmp_path / "refresh.json").read_text())
    assert said["data"] == list(report["data"]) == ["data"]
    part = report["data"]["data"]
    assert part["about"]["passages"] == 60
    for mode in ("none", "sync", PEER):
        told = json.loads((tmp_path / "data" / "runs" / f"contrastive-{mode}-3.json").read_text())
        assert len(told["seconds"]) == 4
        assert np.all(np.diff(told["seconds"]) > 0)
        assert [point["step"] for point in told["curve"]] == [2, 4]
        assert all(0 <= point["RR@10"] <= 1 for point in told["curve"])
        assert len(told["extra"]["refreshes"]) == (0 if mode == "none" else 3)
        assert len(told["per_query"]["RR@10"]) == part["about"]["dev_queries"]
    assert part["rolling_overhead"]["pairs"] == 3
    assert part["rolling_overhead"]["slice"] == 8
    page = (tmp_path / "refresh.md").read_text()
    assert "5 runs; load of the machine" in page
    for heading in ("**Time to a dev RR@10**", "**Throughput**", "**Rolling**, 8 passages", "**Quality**"):
        assert heading in page
    assert not (tmp_path / "data" / "work").exists()
