"""The CUDA pooling kernels, run on the CPU by host_cuda/host_cuda.h: values, stray writes, order of threads."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.ops import pool_normalize_cuda
from ance_fast.ops.pool_normalize import MODES, NORMS, pool_normalize

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).with_name("host_cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GUARD = 64  # elements around every array that the kernels write
INVALID_VALUE, LAUNCH_FAILURE = 1, 719  # cudaError_t


def parse(layout: str) -> list[tuple[str, Any]]:
    """The fields of an argument struct of csrc/cuda/pool_normalize.h, in order, from "name:type ..."."""
    types = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float}
    return [(name, types[kind]) for name, kind in (item.split(":") for item in layout.split())]


class Forward(ctypes.Structure):
    _fields_ = parse(
        "hidden:p cu_seqlens:p tokens:l sequences:l dim:l mode:i norm:i hidden_dtype:i out_dtype:i resident_dtype:i "
        "host_dtype:i weight:p bias:p eps:f multiprocessors:i out:p pooled:p stats:p argmax:p resident:p "
        "resident_rows:p host_slot:p workspace:p workspace_bytes:l"
    )


class Backward(ctypes.Structure):
    _fields_ = parse(
        "grad_out:p cu_seqlens:p tokens:l sequences:l dim:l mode:i norm:i grad_out_dtype:i grad_hidden_dtype:i "
        "weight:p pooled:p stats:p argmax:p eps:f multiprocessors:i grad_hidden:p grad_weight:p grad_bias:p "
        "workspace:p workspace_bytes:l"
    )


@functools.cache
def cuda_include() -> str | None:
    """The folder of CUDA's headers, as nvcc itself finds it."""
    if shutil.which("nvcc") is None:
        return None
    plan = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    if top is None:
        return None
    folders = [Path(top[1].strip()) / part for part in ("include", "targets/x86_64-linux/include")]
    return next((str(folder) for folder in folders if (folder / "cuda_bf16.h").exists()), None)


def compile_library(source: str, folder: Path) -> ctypes.CDLL:
    include = cuda_include()
    if include is None or shutil.which("g++") is None:
        pytest.skip("no nvcc (or none of its headers) or no g++")
    library = folder / f"{source}.so"
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-fno-gnu-unique"]  # the executor is inline: two libraries in one process must not share it
    command += [f"-I{ROOT / 'csrc'}", f"-isystem{include}", "-o", str(library), str(SOURCES / f"{source}.cpp")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    library = compile_library("pool_normalize_host", tmp_path_factory.mktemp("pool"))
    library.error.restype = ctypes.c_char_p
    for name in ("forward_workspace", "backward_workspace", "forward_size", "backward_size"):
        getattr(library, name).restype = ctypes.c_int64
    assert library.forward_size() == ctypes.sizeof(Forward)
    assert library.backward_size() == ctypes.sizeof(Backward)
    return library


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> ctypes.CDLL:
    library = compile_library("self_test", tmp_path_factory.mktemp("shim"))
    library.run.restype = ctypes.c_char_p
    return library


@dataclass
class Memory:
    """Arrays full of poison (NaN, or a large integer) with guards on both sides; `shift` elements off alignment."""

    shift: int = 0
    arrays: list[tuple[Tensor, int]] = field(default_factory=list)

    def make(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        size = torch.Size(shape).numel()
        poison = float("nan") if dtype.is_floating_point else 2**30
        whole = torch.full((size + 2 * GUARD + self.shift,), poison, dtype=dtype)
        self.arrays.append((whole, size))
        return whole[GUARD + self.shift :][:size].view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        return self.make(*tensor.shape, dtype=tensor.dtype).copy_(tensor)

    def assert_guards_untouched(self) -> None:
        for whole, size in self.arrays:
            start = GUARD + self.shift
            guards = torch.cat([whole[:start], whole[start + size :]])
            assert bool((guards.isnan() if whole.is_floating_point() else guards == 2**30).all())


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    dim: int
    mode: str = "mean"
    norm: str = "l2"
    hidden_dtype: torch.dtype = torch.float32
    out_dtype: torch.dtype = torch.float32
    eps: float = 1e-3  # 1e-12 makes a layernorm over one column 1e6 steep: its exact gradient is 0, nothing to compare
    parameters: bool = True
    shift: int = 0
    seed: int = 0

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0).int()

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """hidden, grad_out, weight and bias; the last two only where the norm takes them."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = functools.partial(torch.randn, generator=generator)
        hidden = draw(sum(self.lengths), self.dim).to(self.hidden_dtype)
        grad_out = draw(len(self.lengths), self.dim).to(self.out_dtype)
        weight, bias = draw(self.dim), draw(self.dim)
        return (hidden, grad_out, weight, bias) if self.with_parameters else (hidden, grad_out, None, None)

    @property
    def with_parameters(self) -> bool:
        return self.parameters and self.norm == "layernorm"


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def reserve(struct: Forward | Backward, size: int, memory: Memory) -> None:
    """Gives the struct a workspace of that many bytes, which lives as long as `memory`."""
    struct.workspace, struct.workspace_bytes = pointer(memory.make(size // 4)), size


def run(
    library: ctypes.CDLL,
    case: Case,
    *,
    order: int = 0,
    multiprocessors: int = 0,
    hidden: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Forward and backward with poisoned outputs, threads scheduled by the seed `order`."""
    memory, workspaces = Memory(case.shift), Memory()
    drawn, grad_out, weight, bias = case.inputs()
    hidden = memory.copy(drawn if hidden is None else hidden)
    grad_out = memory.copy(grad_out)
    cu_seqlens = case.cu_seqlens if cu_seqlens is None else cu_seqlens
    tokens, sequences, dim = hidden.shape[0], len(case.lengths), case.dim
    out = memory.make(sequences, dim, dtype=case.out_dtype)
    pooled, stats = memory.make(sequences, dim), memory.make(sequences, 2)
    argmax = memory.make(sequences, dim, dtype=torch.int32) if case.mode == "max" else None
    common: dict[str, Any] = {
        "cu_seqlens": pointer(cu_seqlens), "tokens": tokens, "sequences": sequences, "dim": dim, "eps": case.eps,
        "mode": MODES.index(case.mode), "norm": NORMS.index(case.norm), "multiprocessors": multiprocessors,
        "weight": pointer(weight), "pooled": pointer(pooled), "stats": pointer(stats), "argmax": pointer(argmax),
    }  # fmt: skip
    forward = Forward(
        **common,
        hidden=pointer(hidden),
        hidden_dtype=DTYPES.index(case.hidden_dtype),
        out_dtype=DTYPES.index(case.out_dtype),
        bias=pointer(bias),
        out=pointer(out),
        **(extra or {}),
    )
    reserve(forward, library.forward_workspace(ctypes.byref(forward)), workspaces)
    status = library.pool_forward(ctypes.byref(forward), ctypes.c_uint64(order))
    assert status == 0, library.error()
    grads = {"grad_hidden": memory.make(tokens, dim, dtype=case.hidden_dtype)}
    if case.with_parameters:
        grads |= {name: memory.make(dim) for name in ("grad_weight", "grad_bias")}
    backward = Backward(
        **common,
        grad_out=pointer(grad_out),
        grad_out_dtype=DTYPES.index(case.out_dtype),
        grad_hidden_dtype=DTYPES.index(case.hidden_dtype),
        **{name: pointer(tensor) for name, tensor in grads.items()},
    )
    reserve(backward, library.backward_workspace(ctypes.byref(backward)), workspaces)
    status = library.pool_backward(ctypes.byref(backward), ctypes.c_uint64(order))
    assert status == 0, library.error()
    memory.assert_guards_untouched()
    workspaces.assert_guards_untouched()
    result = {"out": out, "pooled": pooled, "stats": stats, **grads}
    return result if argmax is None else result | {"argmax": argmax}


def expected(case: Case, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Result and gradients of the reference: in `dtype`, or (None) as eager torch computes them in the case's own."""
    hidden, grad_out, weight, bias = (
        None if tensor is None else tensor.to(dtype or tensor.dtype) for tensor in case.inputs()
    )
    assert hidden is not None
    assert grad_out is not None
    leaves = {"grad_hidden": hidden} | ({"grad_weight": weight, "grad_bias": bias} if weight is not None else {})
    for leaf in leaves.values():
        leaf.requires_grad_()
    out = pool_normalize(
        hidden, case.cu_seqlens, mode=case.mode, norm=case.norm, weight=weight, bias=bias, eps=case.eps,
        out_dtype=dtype or case.out_dtype, backend="reference",
    )  # fmt: skip
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def check(library: ctypes.CDLL, case: Case, **settings: Any) -> dict[str, Tensor]:
    """The kernels err at most as eager torch does with the same dtypes, both measured against float64."""
    actual, exact, eager = run(library, case, **settings), expected(case, torch.float64), expected(case, None)
    for name, truth in exact.items():
        assert actual[name].dtype == eager[name].dtype
        if not truth.numel():
            continue
        allowed = (eager[name].double() - truth).abs().max() + 3e-6 * max(1.0, float(truth.abs().max()))
        assert (actual[name].double() - truth).abs().max() <= allowed, (name, case)
    return actual


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, equal_nan=True, msg=name)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.builds(
        Case,
        lengths=st.lists(st.integers(0, 9), max_size=5).map(tuple),
        dim=st.sampled_from([1, 7, 8, 32, 33, 72]),
        mode=st.sampled_from(MODES),
        norm=st.sampled_from(NORMS),
        hidden_dtype=st.sampled_from(DTYPES),
        out_dtype=st.sampled_from(DTYPES),
        parameters=st.booleans(),
        shift=st.sampled_from([0, 0, 1, 4]),
        seed=st.integers(0, 99),
    ),
    order=st.integers(0, 2**32),
)
def test_the_kernels_err_no_more_than_eager_torch_does(kernels, case, order):
    check(kernels, case, order=order)


@pytest.mark.parametrize("dim", [1, 7, 32, 384, 768, 1024, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_row_counts_and_widths_at_the_edges_of_blocks(kernels, mode, dim):
    lengths = (1, 63, 0, 65, 127) if dim < 384 else (1, 0, 9) if dim < 4096 else (2,)
    for number, hidden_dtype in enumerate(DTYPES[: 3 if dim < 4096 else 2]):
        out_dtype, norm = DTYPES[(number + 1) % 3], NORMS[(number + MODES.index(mode)) % 3]
        check(kernels, Case(lengths, dim, mode, norm, hidden_dtype, out_dtype))


@pytest.mark.parametrize("count", [1, 63, 65, 127])
def test_batch_sizes(kernels, count):
    for mode in ("mean", "max"):
        check(kernels, Case((1, 0, 2) * (count // 3) + (3,) * (count % 3), 7, mode, "layernorm"))


@pytest.mark.parametrize("dim", [7, 32])
@pytest.mark.parametrize("mode", MODES)
def test_long_sequences_are_split_without_changing_a_bit(kernels, mode, dim):
    for norm, dtype in (("l2", torch.float32), ("layernorm", torch.bfloat16)):
        case = Case((0, 900, 0, 769, 0), dim, mode, norm, dtype)
        split = check(kernels, case, multiprocessors=132)
        assert_same_bits(split, run(kernels, case, multiprocessors=0))


@pytest.mark.parametrize("mode", MODES)
def test_the_bits_of_a_row_depend_on_its_own_tokens_alone(kernels, mode):
    batch = Case((300, 0, 5, 290), 24, mode, "l2", torch.float16)
    hidden = batch.inputs()[0]
    out = run(kernels, batch, hidden=hidden)["out"]
    for row, tokens in ((0, hidden[:300]), (2, hidden[300:305]), (3, hidden[305:])):
        alone = replace(batch, lengths=(len(tokens),))
        for multiprocessors in (0, 132):
            same = run(kernels, alone, hidden=tokens, multiprocessors=multiprocessors)["out"][0]
            torch.testing.assert_close(same, out[row], rtol=0, atol=0)


def test_only_long_sequences_that_leave_the_machine_idle_are_split(kernels):
    struct = Forward(tokens=2049, sequences=8, dim=64, mode=MODES.index("mean"), multiprocessors=132)
    bytes_of = functools.partial(kernels.forward_workspace, ctypes.byref(struct))
    assert bytes_of() == (2049 // 256 + 8) * 64 * 4
    struct.mode = MODES.index("max")
    assert bytes_of() == (2049 // 256 + 8) * 64 * 8
    for change in ({"mode": MODES.index("cls")}, {"tokens": 2048}, {"multiprocessors": 0}, {"multiprocessors": 2}):
        assert kernels.forward_workspace(ctypes.byref(Forward(**{**fields(struct), **change}))) == 0


def fields(struct: Forward) -> dict[str, Any]:
    return {name: getattr(struct, name) for name, _ in struct._fields_}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_threads_and_blocks_changes_no_bit(kernels, mode, norm):
    case = Case((5, 0, 1, 30), 40, mode, norm, torch.float16, torch.bfloat16)
    first = run(kernels, case, order=0)
    for order in (1, 2, 3):
        assert_same_bits(first, run(kernels, case, order=order))
    long = Case((600, 0, 30), 9, mode, norm)
    split = [run(kernels, long, order=order, multiprocessors=132) for order in (4, 5)]
    assert_same_bits(*split)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_sequence_gives_zeros_and_takes_no_gradient(kernels, mode, norm):
    case = Case((0, 4, 0, 0, 3, 0), 5, mode, norm)
    result = check(kernels, case)
    for name in ("out", "pooled", "stats"):
        assert not result[name][[0, 2, 3, 5]].any()
    if mode == "max":
        assert bool((result["argmax"][[0, 2, 3, 5]] == -1).all())
    for lengths in ((), (0,), (0, 0, 0)):
        result = check(kernels, replace(case, lengths=lengths))
        assert not result["out"].any()
        for name in result.keys() & {"grad_weight", "grad_bias"}:
            assert not result[name].any()


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
def test_unaligned_matrices(kernels, shift):
    for dtype in DTYPES:
        for mode in ("mean", "max"):
            check(kernels, Case((3, 20), 48, mode, "layernorm", dtype, dtype, shift=shift))


def test_the_first_maximum_wins_and_nan_is_the_largest(kernels):
    nan, inf = float("nan"), float("inf")
    column = torch.tensor([[1.0, 5, nan, -inf], [2, 5, 1, -inf], [2, 0, nan, -inf], [0, 0, inf, -inf]])
    for dim, multiprocessors in ((4, 0), (5, 0), (4, 132)):
        head = torch.zeros(300 if multiprocessors else 0, 4) - inf
        hidden = torch.nn.functional.pad(torch.cat([head, column]), (0, dim - 4))
        case = Case((len(hidden),), dim, "max", "none")
        result = run(kernels, case, hidden=hidden, multiprocessors=multiprocessors)
        start = len(head)
        assert result["argmax"][0, :4].tolist() == [start + 1, start, start, 0]
        assert result["out"][0, [0, 1, 3]].tolist() == [2, 5, -inf]
        assert bool(result["out"][0, 2].isnan())


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_nan_stays_in_its_own_sequence(kernels, mode):
    case = Case((3, 3, 3), 18, mode, "l2")
    hidden = case.inputs()[0]
    hidden[4] = float("nan")
    out = run(kernels, case, hidden=hidden)["out"]
    assert bool(out[1].isnan().all())
    assert bool(out[[0, 2]].isfinite().all())


def test_a_zero_vector_is_divided_by_eps_as_torch_does(kernels):
    case = Case((2, 1), 6, "cls", "l2", eps=0.5)
    result = run(kernels, case, hidden=torch.zeros(3, 6))
    assert not result["out"].any()
    torch.testing.assert_close(result["grad_hidden"][[0, 2]], case.inputs()[1] / 0.5)
    assert not result["grad_hidden"][1].any()


@pytest.mark.parametrize("dim", [7, 32])
@pytest.mark.parametrize("multiprocessors", [0, 132])
def test_rows_also_go_to_the_resident_matrix_and_to_the_host_slot(kernels, dim, multiprocessors):
    case = Case((400, 0, 700), dim, "mean", "l2", torch.bfloat16, torch.float32)
    memory = Memory()
    resident, slot = memory.make(9, dim, dtype=torch.float16), memory.make(3, dim, dtype=torch.bfloat16)
    rows = torch.tensor([7, 2, 4])
    extra = {
        "resident": pointer(resident), "resident_rows": pointer(rows), "resident_dtype": 1,
        "host_slot": pointer(slot), "host_dtype": 2,
    }  # fmt: skip
    out = run(kernels, case, multiprocessors=multiprocessors, extra=extra)["out"]
    torch.testing.assert_close(resident[rows], out.half(), rtol=0, atol=0)
    torch.testing.assert_close(slot, out.bfloat16(), rtol=0, atol=0)
    assert bool(resident[[0, 1, 3, 5, 6, 8]].isnan().all())
    memory.assert_guards_untouched()


@pytest.mark.parametrize("multiprocessors", [0, 132])
@pytest.mark.parametrize("offsets", [[-5, 300, 9000], [500, 100, 600], [2**31 - 1, 0, -(2**31)], [7, 600, 600]])
def test_wrong_offsets_reach_no_memory_outside(kernels, offsets, multiprocessors):
    for mode in MODES:
        case = Case((300, 300), 8, mode, "layernorm")
        run(kernels, case, cu_seqlens=torch.tensor(offsets, dtype=torch.int32), multiprocessors=multiprocessors)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 8193},
        {"dim": 0},
        {"tokens": 2**31},
        {"tokens": -1},
        {"sequences": -1},
        {"mode": MODES.index("max")},
        {"resident": 64},
        {"workspace_bytes": 4 * 64 * (4096 // 256 + 1) - 1},
    ],
)
def test_arguments_out_of_range_launch_nothing(kernels, change):
    valid = {"tokens": 4096, "sequences": 1, "dim": 64, "mode": 0, "norm": 0, "multiprocessors": 132}
    assert kernels.pool_forward(ctypes.byref(Forward(**{**valid, **change})), ctypes.c_uint64(0)) == INVALID_VALUE


def test_a_backward_pass_without_what_it_reads_launches_nothing(kernels):
    valid = {"tokens": 0, "sequences": 1, "dim": 4, "mode": 0}
    layernorm = {"norm": NORMS.index("layernorm"), "pooled": 64, "stats": 64}
    for change in (
        {"norm": NORMS.index("l2")},
        {"norm": NORMS.index("l2"), "pooled": 64},
        {"mode": MODES.index("max"), "norm": 0},
        {**layernorm, "grad_weight": 64, "workspace_bytes": 1 << 20},
        {**layernorm, "grad_weight": 64, "grad_bias": 64, "workspace_bytes": 31},
    ):
        assert kernels.pool_backward(ctypes.byref(Backward(**{**valid, **change})), ctypes.c_uint64(0)) == INVALID_VALUE


@pytest.mark.parametrize("dim", [8192, 8191])
def test_the_widest_row_fits_into_shared_memory(kernels, dim):
    for mode in ("mean", "max"):
        check(kernels, Case((3,), dim, mode, "l2", torch.float16))


def struct_of(kind: type[ctypes.Structure], arguments: dict[str, Any]) -> ctypes.Structure:
    """The struct that csrc/cuda/bindings.cpp makes of its arguments, whose names are those of the fields."""
    names = {"float32": 0, "float16": 1, "bfloat16": 2}
    values = {key: names[value] if key.endswith("dtype") else value for key, value in arguments.items()}
    return kind(**{**values, "mode": MODES.index(values["mode"]), "norm": NORMS.index(values["norm"])})


@pytest.fixture
def glue(kernels, monkeypatch):
    """ance_fast.ops.pool_normalize_cuda on CPU tensors: its calls into the extension end in the host-run kernels."""

    def call(entry: Any, kind: type[ctypes.Structure], first: str):
        def run_kernel(address: int, cu_seqlens: int, **arguments: Any) -> None:
            assert arguments.pop("stream") == 7
            struct = struct_of(kind, {first: address, "cu_seqlens": cu_seqlens, **arguments})
            assert entry(ctypes.byref(struct), ctypes.c_uint64(0)) == 0

        return run_kernel

    def forward_workspace(tokens: int, sequences: int, dim: int, mode: str, multiprocessors: int) -> int:
        fields = {"tokens": tokens, "sequences": sequences, "dim": dim, "multiprocessors": multiprocessors}
        return kernels.forward_workspace(ctypes.byref(Forward(**fields, mode=MODES.index(mode))))

    def backward_workspace(sequences: int, dim: int, with_parameters: bool) -> int:
        grad_weight = 64 if with_parameters else None
        return kernels.backward_workspace(ctypes.byref(Backward(sequences=sequences, dim=dim, grad_weight=grad_weight)))

    for name, value in {
        "pool_max_dim_cuda": 8192,
        "pool_forward_workspace_cuda": forward_workspace,
        "pool_backward_workspace_cuda": backward_workspace,
        "pool_normalize_forward_cuda": call(kernels.pool_forward, Forward, "hidden"),
        "pool_normalize_backward_cuda": call(kernels.pool_backward, Backward, "grad_out"),
    }.items():
        monkeypatch.setattr(_C, name, value, raising=False)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(pool_normalize_cuda, "_multiprocessors", lambda device: 132)
    return pool_normalize_cuda


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_python_side_passes_everything_on(glue, mode, norm):
    for lengths in ((3, 0, 5), (600, 0)):
        case = Case(lengths, 12, mode, norm, torch.bfloat16, torch.float16)
        hidden, grad_out, weight, bias = case.inputs()
        transposed = hidden.t().contiguous().t()  # not contiguous
        settings = (mode, norm, case.eps)
        out, *saved = glue.compute_pool(transposed, case.cu_seqlens, weight, bias, *settings, torch.float16, True)
        grads = glue.compute_pool_backward(
            grad_out, case.cu_seqlens, weight, out, *saved, *settings, len(hidden), case.with_parameters, torch.bfloat16
        )
        names = ("grad_hidden", "grad_weight", "grad_bias")
        actual = {"out": out, **{name: grad for name, grad in zip(names, grads, strict=True) if grad.numel()}}
        for name, value in expected(case, None).items():
            torch.testing.assert_close(actual.pop(name), value, rtol=2e-2, atol=2e-2)
        assert not actual
        plain = glue.compute_pool(hidden, case.cu_seqlens, weight, bias, *settings, torch.float16, False)
        torch.testing.assert_close(plain[0], out, rtol=0, atol=0)
        assert plain[1].numel() == plain[2].numel() == 0


def test_other_dtypes_of_the_result_go_through_float32(glue):
    case = Case((2, 3), 12)
    hidden, grad_out, _, _ = case.inputs()
    settings = ("mean", "l2", case.eps)
    out, *saved = glue.compute_pool(hidden, case.cu_seqlens, None, None, *settings, torch.float64, True)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected(case, None)["out"].double())
    grads = glue.compute_pool_backward(
        grad_out.double(), case.cu_seqlens, None, out, *saved, *settings, 5, False, torch.float32
    )
    torch.testing.assert_close(grads[0], expected(case, None)["grad_hidden"])


def test_the_python_side_refuses_what_the_kernel_does_not_take(glue):
    cu_seqlens = torch.tensor([0, 1], dtype=torch.int32)
    arguments = (cu_seqlens, None, None, "mean", "l2", 1e-12)
    with pytest.raises(ConfigError, match="not torch.float64"):
        glue.compute_pool(torch.ones(1, 4, dtype=torch.float64), *arguments, torch.float32, False)
    with pytest.raises(ConfigError, match="9000 wide"):
        glue.compute_pool(torch.ones(1, 9000), *arguments, torch.float32, False)


SHIM_KERNELS = [
    "barrier",
    "no barrier",
    "barrier in a branch",
    "two barriers",
    "absent lane",
    "warp in a branch",
    "past the end",
    "exchanges",
]


def run_shim(shim: ctypes.CDLL, kernel: str, order: int = 0) -> tuple[str, Tensor]:
    out = torch.zeros(64, dtype=torch.int32)
    error = shim.run(SHIM_KERNELS.index(kernel), ctypes.c_uint64(order), ctypes.c_void_p(out.data_ptr()))
    return error.decode(), out


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("barrier in a branch", "threads wait for others that never come"),
        ("two barriers", "threads wait at different barriers"),
        ("absent lane", "a shuffle reads a lane that takes no part"),
        ("warp in a branch", "threads wait for others that never come"),
        ("past the end", "write past the end of dynamic shared memory"),
    ],
)
def test_the_shim_finds_threads_that_do_not_meet_and_stray_writes(shim, kernel, message):
    for order in range(3):
        assert message in run_shim(shim, kernel, order)[0]


def test_the_shim_shows_a_missing_barrier_as_a_result_that_depends_on_the_order(shim):
    right = {tuple(run_shim(shim, "barrier", order)[1].tolist()) for order in range(4)}
    wrong = {tuple(run_shim(shim, "no barrier", order)[1].tolist()) for order in range(4)}
    assert right == {(*range(1, 64), 0)}
    assert len(wrong) > 1


def test_the_shim_exchanges_values_as_a_warp_does(shim):
    for order in range(4):
        error, out = run_shim(shim, "exchanges", order)
        assert not error
        assert bool(out.all())


def test_libraries_in_one_process_keep_their_own_shared_memory(kernels, shim):
    for _ in range(2):
        assert run_shim(shim, "exchanges")[0] == ""
        check(kernels, Case((1, 63, 0, 65, 127), 32))
