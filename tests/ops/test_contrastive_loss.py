"""The chunked contrastive loss against its definition, spelled out in Python."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.ops import contrastive_loss, contrastive_problem
from ance_fast.ops.contrastive_chunks import CPU_LIMIT, Tiling, chunked_loss, default_tiling
from ance_fast.ops.contrastive_problem import Problem

# On a GPU, which has no interpreter, test_triton_kernels.py runs these kernels.
INTERPRETED = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []


def csr(lists):
    offsets = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0)
    return offsets, torch.tensor([v for x in lists for v in x], dtype=torch.int64)


def log_sum_exp(values):
    high = max(values)
    return high + math.log(sum(math.exp(v - high) for v in values))


def direction(logits, targets, masked):
    """Per anchor: mean over its targets of -log softmax among that target and the unmasked others."""
    rows = []
    for i, mine in enumerate(targets):
        others = [logits[i][j] for j in range(len(logits[i])) if j not in mine and (i, j) not in masked]
        terms = [log_sum_exp([logits[i][t], *others]) - logits[i][t] for t in mine]
        rows.append(sum(terms) / len(terms) if terms else 0.0)
    return rows


def by_hand(q, p, targets, doc_ids=None, positives=None, scale=1.0, bidirectional=False):
    logits = (scale * (q @ p.T)).tolist()
    masked = set()
    if doc_ids is not None:
        for i, mine in enumerate(targets):
            known = {doc_ids[t] for t in mine} | set(positives[i] if positives else [])
            masked |= {(i, j) for j, doc in enumerate(doc_ids) if doc in known and j not in mine}
    rows = direction(logits, targets, masked)
    loss = sum(rows) / max(len(rows), 1)
    if not bidirectional:
        return loss
    anchors = sorted({t for mine in targets for t in mine})
    flipped = [[logits[i][a] for i in range(len(q))] for a in anchors]
    asked = [[i for i, mine in enumerate(targets) if a in mine] for a in anchors]
    hidden = {(n, i) for n, a in enumerate(anchors) for i in range(len(q)) if (i, a) in masked}
    other = direction(flipped, asked, hidden)
    return (loss + sum(other) / max(len(other), 1)) / 2


@contextlib.contextmanager
def forced_isa(isa):
    """Run the C++ kernel with another instruction set than the best."""
    real = {name: getattr(_C, name) for name in ("softmax_gradient", "softmax_statistics", "softmax_tile_gradient")}
    try:
        for name, function in real.items():
            setattr(_C, name, functools.partial(function, isa=isa))
        yield
    finally:
        for name, function in real.items():
            setattr(_C, name, function)


@st.composite
def problems(draw):
    batch, columns = draw(st.integers(0, 6)), draw(st.integers(1, 9))
    several = draw(st.booleans())
    least = 0 if several else 1
    column = st.integers(0, columns - 1)
    targets = draw(
        st.lists(
            st.lists(column, min_size=least, max_size=3 if several else 1, unique=True), min_size=batch, max_size=batch
        )
    )
    documents = draw(st.none() | st.lists(st.integers(-3, 5), min_size=columns, max_size=columns))
    positives = None
    if documents is not None:
        one = st.lists(st.integers(-4, 7), max_size=4)
        positives = draw(st.none() | st.lists(one, min_size=batch, max_size=batch))
    return batch, columns, several, targets, documents, positives


def arguments_of(problem):
    _, _, several, targets, documents, positives = problem
    labels = csr(targets) if several else torch.tensor([t[0] for t in targets], dtype=torch.int64)
    return {
        "labels": labels,
        "doc_ids": None if documents is None else torch.tensor(documents),
        "positives": None if positives is None else csr(positives),
    }


@settings(deadline=None, max_examples=30)
@given(
    problem=problems(),
    dim=st.sampled_from([1, 3, 17]),
    chunk=st.sampled_from([None, 1, 2, 64]),
    both=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_it_equals_its_definition_spelled_out(backend, problem, dim, chunk, both, seed):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(problem[0], dim, generator=draw, dtype=torch.float64)
    p = torch.randn(problem[1], dim, generator=draw, dtype=torch.float64)
    loss = contrastive_loss(
        q, p, **arguments_of(problem), scale=2.5, chunk_rows=chunk, bidirectional=both, backend=backend
    )
    wanted = by_hand(q, p, *problem[3:], scale=2.5, bidirectional=both)
    assert loss.item() == pytest.approx(wanted, rel=1e-10, abs=1e-10)


@settings(deadline=None, max_examples=30)
@given(problem=problems(), chunk=st.sampled_from([None, 1, 2]), both=st.booleans(), seed=st.integers(0, 99))
def test_its_gradients_are_those_of_the_reference(problem, chunk, both, seed):
    draw = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(n, 5, generator=draw, dtype=torch.float64, requires_grad=True) for n in problem[:2]]
    leaves.append(torch.tensor([1.7], dtype=torch.float64, requires_grad=True))
    results = []
    for backend, rows in (("torch", chunk), ("reference", None)):
        loss = contrastive_loss(
            *leaves[:2], **arguments_of(problem), scale=leaves[2], chunk_rows=rows, bidirectional=both, backend=backend
        )
        results.append(torch.autograd.grad(3 * loss, leaves))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(), seed=st.integers(0, 99))
def test_anchors_whose_number_cannot_be_read_give_the_reference(monkeypatch, problem, seed):
    """As on a GPU, where their list is as long as it can be."""
    monkeypatch.setattr(contrastive_problem, "readable", lambda _: False)
    draw = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(n, 5, generator=draw, dtype=torch.float64, requires_grad=True) for n in problem[:2]]
    results = []
    for backend in ("torch", "reference"):
        loss = contrastive_loss(*leaves, **arguments_of(problem), bidirectional=True, backend=backend)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("both", [False, True])
def test_gradients_pass_gradcheck_in_float64(backend, both):
    leaves = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 6)]
    leaves.append(torch.tensor(1.3, dtype=torch.float64, requires_grad=True))
    masks = {"doc_ids": torch.tensor([1, 2, 3, 1, 9, 2]), "positives": csr([[9], [], [1, 44], []])}

    def run(q, p, scale):
        return contrastive_loss(q, p, scale=scale, bidirectional=both, chunk_rows=3, backend=backend, **masks)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("batch", [1, 63, 65, 127])
def test_sizes_around_the_chunk_agree_with_cross_entropy(batch):
    q, p = torch.randn(batch, 16, requires_grad=True), torch.randn(2 * batch, 16, requires_grad=True)
    labels = torch.randint(0, 2 * batch, (batch,))
    mine = contrastive_loss(q, p, labels=labels, scale=0.7, chunk_rows=64)
    theirs = torch.nn.functional.cross_entropy(0.7 * q @ p.T, labels)
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(torch.autograd.grad(mine, (q, p)), torch.autograd.grad(theirs, (q, p)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_are_fp32_whatever_the_input_dtype_and_autocast(dtype):
    # Scores in the hundreds, as ANCE's are: bf16 logits would be off by whole units.
    q = (torch.randn(8, 64) * 3).to(dtype).requires_grad_()
    p = (q.detach().float() + torch.randn(8, 64)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(q, p, scale=0.1)
    wide = [t.detach().double().requires_grad_() for t in (q, p)]
    exact = contrastive_loss(*wide, scale=0.1, backend="reference")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-6)
    rtol = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for mine, theirs in zip(torch.autograd.grad(loss, (q, p)), torch.autograd.grad(exact, wide), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=2e-5)


def test_small_gradients_of_a_large_batch_survive_in_fp16():
    # One row's share, 1/B * scale * (P - onehot), is near the smallest fp16 number; the sum over rows is not.
    batch = 512
    q = torch.full((batch, 1), 0.01, dtype=torch.float16)
    p = torch.zeros(batch, 1, dtype=torch.float16, requires_grad=True)
    loss = contrastive_loss(q, p, labels=torch.zeros(batch, dtype=torch.int64), scale=0.01)
    (grad,) = torch.autograd.grad(loss * 1024, p)
    assert grad[0].item() == pytest.approx(-1024 * 0.01 * 0.01 * (batch - 1) / batch, rel=2e-3)


def test_a_row_whose_candidates_are_all_masked_has_loss_zero_and_finite_gradients():
    for backend in ("cpp", "torch", *INTERPRETED, "reference"):
        q, p = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
        loss = contrastive_loss(q, p, doc_ids=torch.tensor([4, 4]), backend=backend)
        assert loss.item() == 0
        for grad in torch.autograd.grad(loss, (q, p)):
            assert not grad.any()


@pytest.mark.parametrize("both", [False, True])
def test_no_rows_give_zero_with_zero_gradients(both):
    q, p = torch.empty(0, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss = contrastive_loss(q, p, bidirectional=both)
    assert loss.item() == 0
    grads = torch.autograd.grad(loss, (q, p))
    assert [g.shape for g in grads] == [q.shape, p.shape]
    assert not grads[1].any()


class CountGemms(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in {"mm", "addmm", "addmm_"}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("need_q", "need_p", "gemms"), [(False, False, 1), (True, False, 2), (True, True, 3)])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_each_gradient_costs_one_gemm_and_none_runs_without_grad(backend, need_q, need_p, gemms):
    problem = Problem((torch.arange(5), torch.arange(4)), None)
    q, p, one = torch.randn(4, 3), torch.randn(6, 3), torch.tensor(1.0)
    with CountGemms() as mode:
        chunked_loss(q, p, one, problem, backend=backend, chunk_rows=0, need_q=need_q, need_p=need_p)
    assert mode.count == gemms


def test_without_grad_the_op_is_told_not_to_compute_gradients(monkeypatch):
    module = sys.modules["ance_fast.ops.contrastive_loss"]
    asked = []
    real = module.chunked_loss
    monkeypatch.setattr(
        module, "chunked_loss", lambda *a, **k: asked.append((k["need_q"], k["need_p"])) or real(*a, **k)
    )
    q, p = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)
    contrastive_loss(q, p)
    contrastive_loss(p, q)
    contrastive_loss(p, p, scale=torch.tensor(1.0, requires_grad=True))
    with torch.no_grad():
        contrastive_loss(q, q)
    assert asked == [(True, False), (False, True), (True, False), (False, False)]


@pytest.fixture
def small_tiles(monkeypatch):
    """Rows by rows and columns by columns, as a matrix too wide for a chunk is visited."""
    monkeypatch.setattr("ance_fast.ops.contrastive_chunks.default_tiling", lambda *_: Tiling(3, 4))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(), both=st.booleans(), scale=st.sampled_from([1.7, 0.0, -0.9]), seed=st.integers(0, 99))
@pytest.mark.parametrize("backend", ["cpp", "torch", *INTERPRETED])
def test_column_tiles_give_what_whole_rows_give(small_tiles, backend, problem, both, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(n, 5, generator=draw, requires_grad=True) for n in problem[:2]]
    results = []
    for chunk in (None, 64):
        loss = contrastive_loss(
            *leaves, **arguments_of(problem), scale=scale, chunk_rows=chunk, bidirectional=both, backend=backend
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for tiled, whole in zip(*results, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=2e-5, atol=1e-6)


def float64_error(inputs, arguments, run):
    """Largest absolute error of loss and gradients against the float64 reference."""
    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = contrastive_loss(*wide, **arguments, backend="reference")
    wanted = [exact.detach(), *torch.autograd.grad(exact, wide)]
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    loss = run(*leaves)
    found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    return [(a.double() - b).abs().max().item() for a, b in zip(found, wanted, strict=True)]


@settings(deadline=None, max_examples=25)
@given(
    rows=st.sampled_from([1, 2, 15, 63, 65, 127]),
    extra=st.sampled_from([0, 1, 16, 64]),
    dim=st.sampled_from([1, 32, 384]),
    size=st.sampled_from([1.0, 26.0]),
    documents=st.sampled_from([None, 1, 5, 1000]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("isa", ["auto", "avx2", "scalar"])
def test_the_kernel_errs_no_more_than_eager_torch(isa, rows, extra, dim, size, documents, seed):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, dim, generator=draw)
    # size 26 makes scores of +-700 for rows of norm 26, which is what ANCE's layer norm head gives.
    q, p = (size * torch.nn.functional.normalize(x) for x in (q, torch.randn(rows + extra, dim, generator=draw)))
    arguments = {}
    if documents is not None:
        arguments["doc_ids"] = torch.randint(0, documents, (rows + extra,), generator=draw)
        arguments["positives"] = csr([[int(i) % documents, 7] for i in range(rows)])
    with forced_isa(isa):
        ours = float64_error((q, p), arguments, lambda a, b: contrastive_loss(a, b, **arguments, chunk_rows=32))
    eager = float64_error((q, p), arguments, lambda a, b: contrastive_loss(a, b, **arguments, backend="reference"))
    for mine, theirs in zip(ours, eager, strict=True):
        assert mine <= theirs + 5e-6 * size


def test_a_chunk_that_would_have_too_few_rows_is_cut_into_tiles():
    cpu = torch.device("cpu")
    assert default_tiling(2048, 4096, cpu) == Tiling(256, 4096)
    assert default_tiling(2048, 1024, cpu) == Tiling(1024, 1024)
    assert default_tiling(100, 4096, cpu) == Tiling(100, 4096)
    assert default_tiling(0, 0, cpu) == Tiling(1, 1)
    for columns in (16384, 16385, 10**7):
        tiling = default_tiling(10**6, columns, cpu)
        assert tiling.rows >= 256
        assert tiling.rows * tiling.columns * 4 <= CPU_LIMIT
    assert default_tiling(10**6, 10**7, cpu).columns < 10**7


def test_runs_are_bitwise_equal():
    q, p = torch.randn(70, 33, requires_grad=True), torch.randn(150, 33, requires_grad=True)
    results = []
    for _ in range(2):
        loss = contrastive_loss(q, p, bidirectional=True, chunk_rows=16)
        results.append([loss.detach(), *torch.autograd.grad(loss, (q, p))])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_second_backward_pass_reads_unchanged_gradients():
    q, p = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = contrastive_loss(q, p)
    first = torch.autograd.grad(loss, (q, p), retain_graph=True)
    kept = [g.clone() for g in first]
    for grad in first:
        grad.fill_(7)
    for again, wanted in zip(torch.autograd.grad(loss, (q, p)), kept, strict=True):
        torch.testing.assert_close(again, wanted, rtol=0, atol=0)


def test_a_backward_pass_that_keeps_nothing_gives_the_same_gradients_and_runs_once():
    q, p = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    kept = torch.autograd.grad(contrastive_loss(q, p) * 3, (q, p), retain_graph=True)
    loss = contrastive_loss(q, p)
    (loss * 3).backward()
    torch.testing.assert_close((q.grad, p.grad), kept, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_the_loss_may_be_changed_in_place():
    q, p = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = contrastive_loss(q, p)
    loss /= 2
    wanted = torch.autograd.grad(contrastive_loss(q, p) / 2, (q, p))
    torch.testing.assert_close(torch.autograd.grad(loss, (q, p)), wanted)


@pytest.mark.parametrize("backend", ["cpp", "torch", *INTERPRETED])
def test_inputs_need_not_be_contiguous(backend):
    table = torch.stack([torch.tensor([4, 0, 3]), torch.zeros(3, dtype=torch.int64)], 1)
    q, p = torch.randn(4, 3).T.requires_grad_(), torch.randn(4, 5).T.requires_grad_()
    documents = torch.tensor([[1, 0], [1, 0], [2, 0], [3, 0], [2, 0]])[:, 0]
    results = []
    for kind in (backend, "reference"):
        loss = contrastive_loss(q, p, labels=table[:, 0], doc_ids=documents, backend=kind)
        results.append([loss.detach(), *torch.autograd.grad(loss, (q, p))])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("labels", [torch.tensor([0, 9]), (torch.tensor([0, 3, 2]), torch.tensor([0, 1]))])
def test_lists_that_lead_out_of_the_arrays_are_refused_under_compile_too(labels):
    q, p = torch.randn(2, 3), torch.randn(4, 3)
    compiled = torch.compile(lambda q, p: contrastive_loss(q, p, labels=labels), backend="aot_eager")
    with pytest.raises(ConfigError, match="columns 0 .. 3 of p|must rise from 0"):
        compiled(q, p)


@pytest.mark.parametrize("backend", ["cpp", "torch", *INTERPRETED])
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_target_listed_twice_counts_twice(small_tiles, backend, chunk):
    q, p = torch.randn(2, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    labels = csr([[1, 5, 1], [0, 0]])
    results = []
    for kind, rows in ((backend, chunk), ("reference", None)):
        loss = contrastive_loss(q, p, labels=labels, chunk_rows=rows, backend=kind)
        results.append([loss.detach(), *torch.autograd.grad(loss, (q, p))])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_accumulate_over_micro_batches():
    q, p = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    for half in (slice(0, 3), slice(3, 6)):
        (contrastive_loss(q[half], p[half]) / 2).backward()
    halves = [contrastive_loss(q[h], p[h], backend="reference") for h in (slice(0, 3), slice(3, 6))]
    wanted = torch.autograd.grad(sum(halves) / 2, (q, p))
    torch.testing.assert_close((q.grad, p.grad), wanted)


def test_a_gradient_scaler_brings_a_batch_of_8192_through_fp16():
    # A row's own share is 1/8192 of a gradient of size one; with the scaler's factor the sum fits fp16, at every step.
    draw = torch.Generator().manual_seed(0)
    q, p = (torch.randn(8192, 8, generator=draw).half().requires_grad_() for _ in range(2))
    factor = 2.0**14
    found = torch.autograd.grad(contrastive_loss(q, p, scale=0.5) * factor, (q, p))
    wide = [t.detach().float().requires_grad_() for t in (q, p)]
    wanted = torch.autograd.grad(contrastive_loss(*wide, scale=0.5), wide)
    for mine, exact in zip(found, wanted, strict=True):
        assert mine.isfinite().all()
        assert (mine.float() / factor - exact).abs().max() <= 2e-3 * exact.abs().max()


def test_a_double_backward_raises_and_the_reference_allows_it():
    q, p = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    (grad,) = torch.autograd.grad(contrastive_loss(q, p), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(contrastive_loss(q, p, backend="reference"), q, create_graph=True)
    grad.square().sum().backward()
    assert q.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["cpp", "torch", *INTERPRETED])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("need", [False, True])
def test_the_custom_op_passes_opcheck(backend, both, need):
    q, p = torch.randn(4, 3, requires_grad=need), torch.randn(6, 3, requires_grad=need)
    scale = torch.tensor(1.5, requires_grad=need)
    targets = csr([[0], [1, 5], [], [3]])
    op = torch.ops.ance_fast.contrastive_loss.default
    torch.library.opcheck(op, (q, p, scale, *targets, None, None, None, backend, 0, both, need, need, need))
    documents, positives = torch.tensor([1, 2, 3, 1, 9, 2]), csr([[9], [], [1, 44], []])
    torch.library.opcheck(op, (q, p, scale, *targets, documents, *positives, backend, 3, both, need, need, need))


def test_it_compiles_into_one_graph_with_its_gradient():
    q, p = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    documents = torch.tensor([1, 2, 3, 1, 9, 2])
    compiled = torch.compile(
        lambda q, p, d: contrastive_loss(q, p, doc_ids=d, scale=2.0, bidirectional=True),
        fullgraph=True,
        backend="aot_eager",
    )
    wanted = torch.autograd.grad(contrastive_loss(q, p, doc_ids=documents, scale=2.0, bidirectional=True), (q, p))
    torch.testing.assert_close(torch.autograd.grad(compiled(q, p, documents), (q, p)), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": torch.ones(4, 2)}, "must have the same width"),
        ({"p": torch.ones(4, 3).half()}, "make them equal"),
        ({"p": torch.ones(1, 3)}, "without labels row i's target is column i"),
        ({"q": torch.ones(2, 3, dtype=torch.int64)}, "q must be floating point"),
        ({"labels": torch.tensor([0, 4])}, r"columns 0 \.\. 3 of p, got 4"),
        ({"labels": torch.tensor([-1, 0])}, r"columns 0 \.\. 3 of p, got -1"),
        ({"labels": torch.tensor([0])}, "labels must have one entry for each of the 2 rows"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be 1-D int64"),
        ({"labels": (torch.tensor([0, 2]), torch.tensor([0, 1]))}, "labels offsets must have 3 entries"),
        ({"labels": (torch.tensor([0, 2, 1]), torch.tensor([0]))}, "must rise from 0 to its 1 values"),
        ({"labels": (torch.tensor([0, 1, 3]), torch.tensor([0, 1]))}, "must rise from 0 to its 2 values"),
        ({"doc_ids": torch.tensor([1])}, "doc_ids must have one entry for each of the 4 columns"),
        ({"doc_ids": torch.ones(4)}, "doc_ids must be 1-D int64"),
        ({"positives": csr([[1], [2]])}, "so doc_ids must say"),
        ({"doc_ids": torch.arange(4), "positives": csr([[1]])}, "positives offsets must have 3 entries"),
        ({"chunk_rows": 0}, "chunk_rows is 0"),
        ({"scale": torch.ones(2)}, "scale must be a number"),
        ({"backend": "eager"}, "backend is 'eager'"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    arguments = {"q": torch.ones(2, 3), "p": torch.ones(4, 3)} | changes
    with pytest.raises(ConfigError, match=message):
        contrastive_loss(**arguments)
