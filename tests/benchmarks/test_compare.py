"""What counts as a regression between two result folders."""

from __future__ import annotations

import json

import pytest

from benchmarks import compare, results

SYSTEM = {
    "cpu": {"model": "a processor"},
    "gpu": [],
    "threads": 1,
    "versions": {"torch": "2"},
    "nvidia_smi": None,
    "date": "2026-01-01",
    "source": {"commit": "c0ffee", "dirty": False},
    "ceilings": {"copy": {"per_second": 1e10}, "float32": {"per_second": 1e11, "side": 64.0}},
}


def row(provider, p50, spread=0.05, **more):
    ms = {"p20": p50 * (1 - spread), "p50": p50, "p80": p50 * (1 + spread)}
    return {
        "group": "pool",
        "op": "pool",
        "shape": "16 rows",
        "dtype": "float32",
        "device": "cpu",
        "provider": provider,
        "note": "",
        "status": "ok",
        "reason": None,
        "ms": ms,
        "rounds": 7,
        "ratio": None,
        "errors": None,
        "peak_bytes": None,
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    def make(name, rows, system=SYSTEM):
        results.write(tmp_path / name, system, rows)
        return tmp_path / name

    return make


def compared(*arguments):
    """Exit status of the command."""
    try:
        compare.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code
    return 0


def test_a_run_equals_itself(folder, capsys):
    a = folder("a", [row("ours (auto)", 2.0), row(BASE := "eager fp32", 4.0)])
    assert compared(a, a) == 0
    printed = capsys.readouterr().out
    assert "| cpu, pool, 16 rows, float32, ours (auto) |" in printed
    assert BASE in printed
    assert "1.000 | noise |" in printed


def test_an_edited_row_is_a_regression(folder, capsys):
    a = folder("a", [row("ours (auto)", 2.0), row("eager fp32", 4.0)])
    b = folder("b", [row("ours (auto)", 2.0), row("eager fp32", 4.0)])
    lines = [json.loads(line) for line in (b / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0]["ms"] = {name: value * 1.3 for name, value in lines[0]["ms"].items()}
    (b / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert compared(a, b) == 1
    captured = capsys.readouterr()
    assert "1.300 | REGRESSED |" in captured.out
    assert "1 of 2 rows regressed by more than 10%" in captured.err
    assert compared(a, b, "--tolerance", "0.4") == 0
    assert compared(b, a) == 0
    assert "| faster |" in capsys.readouterr().out


def test_a_slower_median_within_the_spread_is_noise(folder, capsys):
    a = folder("a", [row("ours (auto)", 2.0, spread=0.3)])
    b = folder("b", [row("ours (auto)", 2.5, spread=0.3)])
    assert compared(a, b) == 0
    assert "1.250 | noise |" in capsys.readouterr().out


def test_rows_of_one_folder_alone_are_listed_and_untimed_ones_left_out(folder, capsys):
    failed = row("inf-cl", 1.0, status="failed", reason="needs CUDA")
    del failed["ms"]
    a = folder("a", [row("ours (auto)", 2.0), row("liger-kernel", 2.0), failed])
    b = folder("b", [row("ours (auto)", 2.0)])
    assert compared(a, b) == 0
    printed = capsys.readouterr().out
    assert f"only in {a}: cpu, pool, 16 rows, float32, liger-kernel" in printed
    assert "inf-cl" not in printed


def test_another_machine_is_a_warning(folder, capsys):
    a = folder("a", [row("ours (auto)", 2.0)])
    other = {**SYSTEM, "cpu": {"model": "another one"}, "gpu": [{"name": "H200"}], "threads": 4}
    b = folder("b", [row("ours (auto)", 2.0)], other)
    assert compared(a, b) == 0
    warnings = capsys.readouterr().err
    assert "warning: another processor: a processor and another one" in warnings
    assert "warning: another GPU: none and ['H200']" in warnings
    assert "warning: another number of threads: 1 and 4" in warnings


def test_a_folder_without_results_is_a_clear_error(folder, tmp_path, capsys):
    a = folder("a", [row("ours (auto)", 2.0)])
    assert compared(a, tmp_path / "nowhere") == 2
    assert f"error: {tmp_path / 'nowhere'} holds no results" in capsys.readouterr().err


def test_damaged_results_are_a_clear_error(folder, capsys):
    a = folder("a", [row("ours (auto)", 2.0)])
    (a / "results.jsonl").write_text('{"op": ', encoding="utf-8")
    assert compared(a, a) == 2
    assert "the results are damaged" in capsys.readouterr().err


def test_folders_with_nothing_in_common_are_an_error(folder, capsys):
    a = folder("a", [row("ours (auto)", 2.0)])
    b = folder("b", [row("eager fp32", 2.0)])
    assert compared(a, b) == 2
    assert "no timed row in common" in capsys.readouterr().err
