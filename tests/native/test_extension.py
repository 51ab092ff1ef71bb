"""The compiled module itself: what it says about its build, and how it refuses wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ance_fast import _C


def forward(**changes: object) -> None:
    arguments: dict[str, object] = {
        "hidden": np.ones((4, 3), np.float32),
        "cu_seqlens": np.array([0, 2, 4], np.int32),
        "mode": "mean",
        "norm": "none",
        "weight": None,
        "bias": None,
        "eps": 1e-12,
        "out": np.empty((2, 3), np.float32),
    }
    arguments.update(changes)
    hidden, cu_seqlens = arguments.pop("hidden"), arguments.pop("cu_seqlens")
    _C.pool_normalize_forward(hidden, cu_seqlens, **arguments)


def test_build_info_names_the_compiler_the_cpu_and_cuda():
    info = _C.build_info()
    assert info["compiler"].split()[0] in {"gcc", "clang"}
    assert info["isa"] in {"avx512", "avx2", "scalar"}
    assert isinstance(info["cuda"], bool)
    if info["cuda"]:
        assert info["cuda_runtime_version"] >= 11000
        assert (info["cuda_device_count"] > 0) == (info["cuda_error"] == "")


def test_the_chosen_instruction_set_is_one_the_operating_system_reports():
    flags = Path("/proc/cpuinfo").read_text().split()
    needs = {"avx512": {"avx512f", "avx512dq", "avx512vl"}, "avx2": {"avx2", "fma"}, "scalar": set()}
    assert _C.best_isa() == _C.build_info()["isa"]
    assert needs[_C.build_info()["isa"]] <= set(flags)


def test_the_module_imports_without_torch():
    code = "import sys; from importlib.machinery import ExtensionFileLoader as L; from importlib.util import *;"
    code += f"s = spec_from_file_location('_C', {_C.__file__!r}); m = module_from_spec(s); s.loader.exec_module(m);"
    code += "assert m.build_info() and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": np.ones((4, 3))}, TypeError, "hidden must be float32, got float64"),
        ({"hidden": np.ones(4, np.float32)}, ValueError, r"hidden must have shape \[any, any\], got \[4\]"),
        ({"hidden": np.ones((3, 4), np.float32).T}, ValueError, "hidden must be C-contiguous"),
        ({"cu_seqlens": np.array([0, 4])}, TypeError, "cu_seqlens must be int32"),
        ({"cu_seqlens": np.array([], np.int32)}, ValueError, "at least one entry"),
        ({"cu_seqlens": np.array([1, 2, 4], np.int32)}, ValueError, "must start with 0"),
        ({"cu_seqlens": np.array([0, 5, 4], np.int32)}, ValueError, "decreases at entry 2"),
        ({"cu_seqlens": np.array([0, 2, 5], np.int32)}, ValueError, "ends with 5, but hidden has 4"),
        ({"out": np.empty((3, 3), np.float32)}, ValueError, r"out must have shape \[2, 3\], got \[3, 3\]"),
        ({"weight": np.ones(2, np.float32)}, ValueError, r"weight must have shape \[3\]"),
        ({"mode": "median"}, ValueError, "mean, cls, last or max"),
        ({"norm": "l1"}, ValueError, "none, l2 or layernorm"),
        ({"mode": "max"}, ValueError, "needs the argmax"),
        ({"isa": "neon"}, ValueError, "auto, avx512, avx2 or scalar"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_name(changes, error, message):
    with pytest.raises(error, match=message):
        forward(**changes)


def test_a_read_only_output_is_refused():
    out = np.empty((2, 3), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        forward(out=out)


def test_an_argmax_that_points_outside_its_sequence_is_refused():
    for token in (-1, 2, 9):
        with pytest.raises(ValueError, match="argmax of sequence 0 lies outside"):
            _C.pool_normalize_backward(
                np.ones((2, 1), np.float32),
                np.array([0, 2, 4], np.int32),
                mode="max",
                norm="none",
                weight=None,
                pooled=None,
                stats=None,
                argmax=np.array([[token], [2]], np.int32),
                eps=1e-12,
                grad_hidden=np.empty((4, 1), np.float32),
            )


def test_an_instruction_set_the_cpu_lacks_is_an_error():
    order = ["scalar", "avx2", "avx512"]
    best = order.index(_C.build_info()["isa"])
    for rank, isa in enumerate(order):
        if rank <= best:
            forward(isa=isa)
        else:
            with pytest.raises(ValueError, match="not supported by this CPU"):
                forward(isa=isa)


def test_the_sampler_refuses_what_does_not_fit_together():
    rows, scores = np.array([[1, 2]], np.int32), np.zeros((1, 2), np.float32)
    positives = np.array([0, 1]), np.array([0])
    keywords = {
        **{"passages": 5, "documents": None, "contents": None, "rank_min": 0, "rank_max": 9, "per_source": 0},
        **{"seed": 0, "generation": 0, "rows": rows.copy(), "scores": scores.copy()},
        "queries": np.array([0]),
        "origins": np.zeros((1, 2), np.uint8),
    }
    _C.unite_candidates([(rows, scores)], positives, **keywords)
    for changes, message in (
        ({"positives": (np.array([0, 2]), np.array([0]))}, "positive offsets must rise from 0"),
        ({"positives": (np.array([0, 1]), np.array([5]))}, "must ascend within a query and lie in 0"),
        ({"positives": (np.array([0, 2]), np.array([3, 1]))}, "must ascend within a query"),
        ({"sources": [(rows, scores)] * 2}, "as wide as the sources together"),
        ({"sources": [(rows, scores[:, :1])]}, r"scores must have shape \[1, 2\], got \[1, 1\]"),
        ({"documents": np.zeros(4, np.int64)}, r"documents must have shape \[5\], got \[4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.unite_candidates(**{"sources": [(rows, scores)], "positives": positives, **keywords, **changes})
    draw = {**{"passages": 5, "documents": None, "contents": None}, **{"seed": 0, "generation": 0, "step": 0}}
    drawn = np.zeros((1, 1), np.int64)
    for queries, table, message in (
        (np.array([1]), rows, "a query is outside the table"),
        (np.array([0]), rows + 4, "a candidate is outside the passages"),
    ):
        with pytest.raises((ValueError, IndexError), match=message):
            _C.draw_negatives(table, None, queries, positives, **draw, drawn=drawn)
