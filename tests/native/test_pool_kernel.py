"""The C++ pooling kernel: every instruction set gives the same bits, and those are right to fp32."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast import _C
from ance_fast.ops.pool_normalize import MODES, NORMS, pool_normalize_reference

RANKED = ["scalar", "avx2", "avx512"]
ISAS = RANKED[: RANKED.index(_C.build_info()["isa"]) + 1]


def run(hidden, cu, grad_out, mode, norm, weight, bias, isa, eps=1e-12, threads=1):
    """Forward and backward with every output poisoned with NaN (argmax: a large number) beforehand."""
    sequences, dim = len(cu) - 1, hidden.shape[1]
    saved = {
        "pooled": np.full((sequences, dim), np.nan, np.float32),
        "stats": np.full((sequences, 2), np.nan, np.float32),
        "argmax": np.full((sequences, dim), 2**30, np.int32) if mode == "max" else None,
    }
    out = np.full((sequences, dim), np.nan, np.float32)
    common = {"mode": mode, "norm": norm, "eps": eps, "isa": isa, "weight": weight, "threads": threads}
    _C.pool_normalize_forward(hidden, cu, **common, bias=bias, out=out, **saved)
    grads = {"grad_hidden": np.full(hidden.shape, np.nan, np.float32)}
    if norm == "layernorm":
        grads |= {name: np.full(dim, np.nan, np.float32) for name in ("grad_weight", "grad_bias")}
    _C.pool_normalize_backward(grad_out, cu, **common, **saved, **grads)
    return {"out": out, **grads}


def problem(lengths, dim, seed):
    rng = np.random.default_rng(seed)
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    shapes = ((cu[-1], dim), (len(lengths), dim), (dim,), (dim,))
    hidden, grad_out, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return hidden, cu, grad_out, weight, bias


def expected(hidden, cu, grad_out, mode, norm, weight, bias, dtype, eps=1e-12):
    """Outputs of the reference in `dtype`, gradients by autograd."""
    leaves = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in (hidden, weight, bias)]
    parameters = {"weight": leaves[1], "bias": leaves[2]} if norm == "layernorm" else {}
    out = pool_normalize_reference(leaves[0], torch.tensor(cu), mode=mode, norm=norm, eps=eps, **parameters)
    used = leaves if parameters else leaves[:1]
    grads = torch.autograd.grad((out * torch.tensor(grad_out, dtype=dtype)).sum(), used)
    names = ("grad_hidden", "grad_weight", "grad_bias")
    return {"out": out.detach().numpy(), **{n: g.numpy() for n, g in zip(names, grads, strict=False)}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    dim=st.sampled_from([1, 7, 8, 16, 17, 33, 384]),
    seed=st.integers(0, 99),
)
def test_the_kernel_errs_no_more_than_eager_fp32_does(mode, norm, lengths, dim, seed):
    # eps of 1e-12 makes a layernorm over one column 1e6 steep: its exact gradient is 0, of which nothing can be said.
    eps = 1e-3 if norm == "layernorm" else 1e-12
    hidden, cu, grad_out, weight, bias = problem(lengths, dim, seed)
    exact = expected(hidden, cu, grad_out, mode, norm, weight, bias, torch.float64, eps)
    eager = expected(hidden, cu, grad_out, mode, norm, weight, bias, torch.float32, eps)
    given_weight, given_bias = (weight, bias) if norm == "layernorm" else (None, None)
    for isa in ISAS:
        actual = run(hidden, cu, grad_out, mode, norm, given_weight, given_bias, isa, eps)
        assert actual.keys() == exact.keys()
        for name, value in actual.items():
            if not value.size:
                continue
            allowed = np.abs(eager[name] - exact[name]).max() + 2e-6 * max(1.0, np.abs(exact[name]).max())
            assert np.abs(value - exact[name]).max() <= allowed, (name, isa)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [1, 7, 17, 384])
def test_every_instruction_set_gives_the_same_bits(mode, norm, dim):
    hidden, cu, grad_out, weight, bias = problem([5, 0, 1, 30, 0, 8], dim, 3)
    weight, bias = (weight, bias) if norm == "layernorm" else (None, None)
    results = [run(hidden, cu, grad_out, mode, norm, weight, bias, isa) for isa in ISAS]
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_array_equal(value.view(np.uint32), other[name].view(np.uint32), err_msg=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_sequence_gives_zeros_and_takes_no_gradient(mode, norm):
    hidden, _, grad_out, weight, bias = problem([4, 3], 5, 0)
    weight, bias = (weight, bias) if norm == "layernorm" else (None, None)
    dense = run(hidden, np.array([0, 4, 7], np.int32), grad_out, mode, norm, weight, bias, "auto")
    holes = np.array([0, 0, 4, 4, 4, 7, 7], np.int32)
    spread = np.full((6, 5), 1e30, np.float32)  # a gradient into an empty sequence must reach nothing
    spread[[1, 4]] = grad_out
    sparse = run(hidden, holes, spread, mode, norm, weight, bias, "auto")
    assert not sparse["out"][[0, 2, 3, 5]].any()
    np.testing.assert_array_equal(sparse["out"][[1, 4]], dense["out"])
    for name in dense.keys() - {"out"}:
        np.testing.assert_array_equal(sparse[name], dense[name])


def test_no_sequences_and_no_tokens_are_legal():
    for cu, tokens in (([0], 0), ([0, 0], 0)):
        cu = np.array(cu, np.int32)
        hidden, grad_out = np.empty((tokens, 3), np.float32), np.ones((len(cu) - 1, 3), np.float32)
        result = run(hidden, cu, grad_out, "max", "l2", None, None, "auto")
        assert not result["out"].any()


def test_nan_stays_in_its_own_sequence():
    hidden, cu, grad_out, _, _ = problem([3, 3, 3], 18, 1)
    hidden[4] = np.nan
    for mode in ("mean", "max"):
        for isa in ISAS:
            out = run(hidden, cu, grad_out, mode, "l2", None, None, isa)["out"]
            assert np.isnan(out[1]).all()
            assert np.isfinite(out[[0, 2]]).all()


def test_the_first_of_equal_maxima_gets_the_gradient():
    hidden = np.array([[1, 5], [2, 5], [2, 0]], np.float32)
    for isa in ISAS:
        grads = run(hidden, np.array([0, 3], np.int32), np.array([[3, 4]], np.float32), "max", "none", None, None, isa)[
            "grad_hidden"
        ]
        np.testing.assert_array_equal(grads, [[0, 4], [3, 0], [0, 0]])


def test_a_zero_vector_is_divided_by_eps_as_torch_does():
    result = run(
        np.zeros((1, 2), np.float32), np.array([0, 1], np.int32), np.ones((1, 2), np.float32),
        "cls", "l2", None, None, "auto", eps=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(result["out"], [[0, 0]])
    np.testing.assert_array_equal(result["grad_hidden"], [[2, 2]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_number_of_threads_does_not_change_a_bit(mode, norm):
    rng = np.random.default_rng(0)
    # More elements than two threads need to be worth it.
    arguments = problem(rng.integers(0, 40, 300), 33, 5)
    one, three = (run(*arguments[:3], mode, norm, *arguments[3:], "auto", threads=n) for n in (1, 3))
    for name, array in one.items():
        np.testing.assert_array_equal(array, three[name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("isa", ISAS)
def test_a_result_written_past_the_cache_is_the_same(mode, isa):
    # 7 MB: more than the limit for it, in rows of whole registers.
    rng = np.random.default_rng(0)
    arguments = problem(rng.integers(0, 40, 120), 768, 5)
    assert arguments[0].nbytes > 4 << 20
    result = run(*arguments[:3], mode, "l2", *arguments[3:], isa, threads=3)  # its outputs have been written before
    wanted = expected(*arguments[:3], mode, "l2", *arguments[3:], torch.float64)
    np.testing.assert_allclose(result["grad_hidden"], wanted["grad_hidden"], rtol=1e-5, atol=1e-6)


def test_a_large_result_may_lie_anywhere():
    rng = np.random.default_rng(0)
    hidden, cu, grad_out, *_ = problem(rng.integers(0, 40, 120), 768, 5)
    common = {"mode": "cls", "norm": "none", "eps": 1e-12, "weight": None, "threads": 1, "isa": "auto"}
    saved = dict.fromkeys(("pooled", "stats", "argmax"))
    results = []
    for shift in (0, 1):  # of one element: no register's alignment
        buffer = np.full(hidden.size + 32, np.nan, np.float32)
        start = (-buffer.ctypes.data // 4) % 16 + shift
        grad = buffer[start : start + hidden.size].reshape(hidden.shape)
        _C.pool_normalize_backward(grad_out, cu, **common, **saved, grad_hidden=grad)
        assert np.isnan(buffer[:start]).all()
        assert np.isnan(buffer[start + hidden.size :]).all()
        results.append(grad)
    with mmap.mmap(-1, hidden.nbytes) as untouched:
        grad = np.frombuffer(untouched, np.float32).reshape(hidden.shape)
        _C.pool_normalize_backward(grad_out, cu, **common, **saved, grad_hidden=grad)
        results.append(grad.copy())
        del grad
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
