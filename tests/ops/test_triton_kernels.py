"""The Triton kernels against float64, called directly; without a GPU Triton's interpreter runs them on CPU tensors."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ConfigError
from ance_fast.ops import contrastive_chunks
from ance_fast.ops.contrastive_chunks import Tiling
from ance_fast.ops.contrastive_loss import _row_losses, contrastive_loss_reference
from ance_fast.ops.contrastive_problem import Masks, Problem, build_problem, target_lists, transpose
from ance_fast.ops.loss_wiring import workspace_gain
from ance_fast.ops.pairwise_loss import pairwise_loss_reference
from ance_fast.ops.pool_normalize import MODES, NORMS, pool_normalize_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
assert DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before triton is imported"

from ance_fast.ops import pairwise_loss_triton as pairwise  # noqa: E402
from ance_fast.ops import pool_normalize_triton as pooling  # noqa: E402
from ance_fast.ops import softmax_gradient_triton as softmax  # noqa: E402

# The interpreter computes bf16 wrongly even in casts; on a GPU it is tested like the others.
HALVES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]


def csr(lists):
    offsets = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0)
    return offsets.to(DEVICE), torch.tensor([v for x in lists for v in x], dtype=torch.int64, device=DEVICE)


def with_gap(rows, columns, gap, dtype=torch.float32):
    """A [rows, columns] view of NaN whose rows are `gap` further apart, and the whole buffer."""
    buffer = torch.full((rows, columns + gap), torch.nan, dtype=dtype, device=DEVICE)
    return buffer[:, :columns], buffer


class Rows:
    """A chunk of rows: logits, targets, and masks made from the documents in the columns."""

    def __init__(self, logits, targets, scale=1.0, documents=None, masked=None):
        self.logits, self.scale = logits.to(DEVICE), scale
        columns = logits.shape[1]
        self.count = torch.zeros(logits.shape, dtype=torch.float64)
        self.known = torch.zeros(logits.shape, dtype=torch.bool)
        for row, mine in enumerate(targets):
            for column in mine:
                self.count[row, column] += 1
        masks = None
        if documents is not None:
            # The last keys may be in no column.
            keys = max([*documents, *(k for row in masked for k in row)], default=0) + 1
            masks = Masks(csr(masked), csr([[j for j in range(columns) if documents[j] == key] for key in range(keys)]))
            for row, mine in enumerate(masked):
                for column in range(columns):
                    self.known[row, column] = documents[column] in mine
        self.problem = Problem(csr(targets), masks)

    def wanted(self):
        """Losses and their gradients in the scaled logits, from the reference's autograd in float64."""
        scaled = (self.logits.cpu().double() * self.scale).requires_grad_()
        losses = _row_losses(scaled, self.count, self.known)
        (gradient,) = torch.autograd.grad(losses.sum(), scaled)
        return losses.detach(), gradient

    def tolerance(self):
        """Of fp32: what rounding the scaled logits, relative to the largest, does to losses and probabilities."""
        largest = (self.logits.double() * self.scale).abs().max().item() if self.logits.numel() else 0
        return 2e-6 + 2e-7 * largest

    def check(self, losses, gradient, slack=0.0):
        wanted, wanted_gradient = self.wanted()
        assert losses.dtype == torch.float32
        close = {"rtol": 2e-6, "atol": self.tolerance()}
        torch.testing.assert_close(losses.cpu().double(), wanted, **close)
        if gradient is not None:
            close = {"rtol": self.tolerance() + slack, "atol": self.tolerance() + slack / 64}
            gradient = gradient.cpu().double() / workspace_gain(gradient.dtype)
            torch.testing.assert_close(gradient, wanted_gradient, **close)


def scratch(rows):
    """What the kernels write for targets and rows, poisoned."""
    like = {"dtype": torch.float32, "device": DEVICE}
    targets, count = rows.problem.targets[1].shape[0], rows.logits.shape[0]
    return torch.full((2, targets), torch.nan, **like), *torch.full((3, count), torch.nan, **like)


def fused(rows, gap=0, need=True, out=None):
    logits, buffer = with_gap(*rows.logits.shape, gap)
    logits.copy_(rows.logits)
    kept, losses, *_ = scratch(rows)
    work = softmax.gradient(logits, rows.scale, rows.problem, kept, losses, need, out)
    assert buffer[:, rows.logits.shape[1] :].isnan().all()
    assert work is (logits if out is None else out)
    return losses, work


def tiled(rows, width, dtype=None):
    """The tiled form, with its tiles in an order of their own."""
    columns = rows.logits.shape[1]
    begins = list(range(0, columns, width))
    begins = begins[1::2] + begins[::2]
    kept, losses, top, factor = scratch(rows)
    for at in begins:
        logits = rows.logits[:, at : at + width].clone()
        softmax.statistics(logits, rows.scale, rows.problem, kept, top, factor, at, at == begins[0])
    softmax.finish(top, factor, rows.problem, kept, losses)
    gradient = torch.full_like(rows.logits, torch.nan, dtype=dtype)
    for at in begins:
        logits, out = rows.logits[:, at : at + width].clone(), gradient[:, at : at + width]
        arguments = (logits, rows.scale, rows.problem, kept, top, factor, at)
        if dtype is None:
            out.copy_(softmax.tile_gradient(*arguments))
        else:
            softmax.tile_gradient(*arguments, out=out)
    return losses, gradient


@pytest.fixture(params=["registers", "loop"])
def softmax_form(request, monkeypatch):
    """Both forms of the kernel at sizes where one block would do."""
    if request.param == "loop":
        monkeypatch.setattr(softmax, "SINGLE_BLOCK", 1)
        monkeypatch.setattr(softmax, "LOOP_BLOCK", 32)


@st.composite
def chunks(draw):
    columns = draw(st.integers(1, 70))
    count = draw(st.integers(1, 4))
    targets = [draw(st.lists(st.integers(0, columns - 1), max_size=5)) for _ in range(count)]
    documents = masked = None
    if draw(st.booleans()):
        documents = draw(st.lists(st.integers(0, 9), min_size=columns, max_size=columns))
        masked = [draw(st.lists(st.integers(0, 11), max_size=4)) for _ in range(count)]
    size = draw(st.sampled_from([0.0, 1.0, 50.0, 700.0]))
    logits = size * torch.randn(count, columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return Rows(logits, targets, draw(st.sampled_from([1.0, 0.3, 0.0, -1.5])), documents, masked)


@settings(deadline=None, max_examples=25)
@given(rows=chunks(), width=st.sampled_from([1, 7, 64]))
def test_any_block_gives_the_losses_and_gradients_of_the_reference(rows, width):
    rows.check(*fused(rows, gap=3))
    if rows.logits.shape[1] <= 12 * width:
        rows.check(*tiled(rows, width))


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (63, 40), (65, 33), (127, 17), (3, 257)])
def test_rows_and_columns_need_not_fill_blocks(count, columns):
    targets = [[i % columns] for i in range(count)]
    documents = [j // 2 for j in range(columns)]
    masked = [[documents[i % columns], (i * 7) % len(documents)] for i in range(count)]
    rows = Rows(5 * torch.randn(count, columns), targets, 1.3, documents, masked)
    rows.check(*fused(rows))
    if count < 64:
        rows.check(*tiled(rows, 30 if columns < 100 else 130))


@pytest.mark.parametrize("size", [1.0, 700.0])
def test_scores_near_700_keep_fp32_accuracy(softmax_form, size):
    logits = size + 3 * torch.randn(4, 90)
    logits[1] -= 2 * size
    rows = Rows(logits, [[3], [89, 0], [5, 5], []])
    losses, gradient = fused(rows)
    wanted, wanted_gradient = rows.wanted()
    # The differences of these logits are exact in fp32, so nothing may be lost to their size.
    torch.testing.assert_close(losses.cpu().double(), wanted, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.cpu().double(), wanted_gradient, rtol=2e-5, atol=1e-7)


def test_a_tiny_loss_and_gradient_keep_their_relative_accuracy(softmax_form):
    logits = torch.zeros(4, 8)
    logits[:, 2] = torch.tensor([10.0, 25.0, 40.0, 60.0])
    rows = Rows(logits, [[2]] * 4)
    losses, gradient = fused(rows)
    wanted, wanted_gradient = rows.wanted()
    torch.testing.assert_close(losses.cpu().double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.cpu().double(), wanted_gradient, rtol=1e-5, atol=0)


def test_overflow_of_the_exponentials_is_impossible(softmax_form):
    logits = torch.zeros(2, 40)
    logits[0, 7], logits[1, 7] = 3e4, -3e4
    logits[1, 8:] = -3e4
    rows = Rows(logits, [[0], [7]])
    losses, gradient = fused(rows)
    assert losses[0].item() == 3e4
    assert gradient.isfinite().all()
    rows.check(losses, gradient)


def test_a_row_whose_every_other_column_is_masked_has_loss_zero(softmax_form):
    logits = torch.randn(3, 50)
    rows = Rows(logits, [[4], [4, 9], [49]], 2.0, [7] * 50, [[7], [7], []])
    losses, gradient = fused(rows)
    assert losses[:2].tolist() == [0, 0]
    assert not gradient[:2].any()
    rows.check(losses, gradient)
    rows.check(*tiled(rows, 20))


def test_a_row_without_targets_has_loss_and_gradient_zero(softmax_form):
    rows = Rows(torch.randn(3, 40), [[], [1], []], 2.0)
    losses, gradient = fused(rows)
    assert losses[::2].tolist() == [0, 0]
    assert not gradient[::2].any()
    rows.check(losses, gradient)


@pytest.mark.parametrize("targets", [[5, 5], [5, 5, 9], [9, 5, 9, 5, 5], list(range(40)), [3] * 70, [*range(33), 1, 1]])
def test_targets_may_repeat_and_be_many(softmax_form, targets):
    rows = Rows(torch.randn(2, 60), [targets, [59]], 3.0)
    rows.check(*fused(rows))
    rows.check(*tiled(rows, 25))


def test_a_row_may_mask_many_keys_and_a_key_be_in_many_columns(softmax_form):
    documents = [0] * 40 + list(range(1, 41))
    rows = Rows(torch.randn(2, 80), [[0], [79]], 1.0, documents, [list(range(37)), [0, 40]])
    rows.check(*fused(rows))
    rows.check(*tiled(rows, 30))


def test_what_is_masked_has_no_influence_however_large(softmax_form):
    logits = torch.randn(2, 40)
    rows = Rows(logits, [[4], [6]], 1.0, list(range(40)), [[9, 4], [9]])
    plain = fused(rows)
    rows.logits[:, 9] = 1e30
    for one, two in zip(plain, fused(rows), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_gradient_can_go_to_a_workspace_of_the_embeddings_dtype(softmax_form, dtype):
    rows = Rows(3 * torch.randn(5, 77), [[i, i] for i in range(5)], 1.0, [0] * 9 + [1] * 68, [[0]] * 5)
    gradient, buffer = with_gap(5, 77, 5, dtype)
    losses, _ = fused(rows, out=gradient)
    rows.check(losses, gradient, slack=torch.finfo(dtype).eps)
    assert buffer[:, 77:].isnan().all()
    losses, gradient = tiled(rows, 30, dtype)
    rows.check(losses, gradient, slack=torch.finfo(dtype).eps)


def test_without_need_no_gradient_is_written(softmax_form):
    rows = Rows(torch.randn(2, 40), [[4], []])
    losses, logits = fused(rows, need=False)
    rows.check(losses, None)
    kept = torch.ones_like(logits, dtype=torch.bool)
    kept[0, 4] = False
    torch.testing.assert_close(logits[kept], rows.logits[kept], rtol=0, atol=0)


@pytest.mark.parametrize(("count", "columns"), [(0, 5), (3, 0), (0, 0)])
def test_no_rows_or_no_columns_give_losses_of_zero(count, columns):
    rows = Rows(torch.zeros(count, columns), [[]] * count)
    assert fused(rows)[0].tolist() == [0.0] * count
    if columns:
        assert tiled(rows, 4)[0].tolist() == [0.0] * count


def test_a_target_in_no_tile_makes_the_loss_nan():
    rows = Rows(torch.randn(2, 9), [[1], [2]])
    rows.problem.targets[1][0] = 9
    assert fused(rows)[0].isnan().tolist() == [True, False]
    assert tiled(rows, 4)[0].isnan().tolist() == [True, False]


def test_small_probabilities_keep_their_precision_in_fp16():
    # 1 / 5000 of a row is a subnormal number in fp16 once it is split among that many columns of unlike size.
    rows = Rows(2 * torch.randn(2, 5000), [[0], [1]])
    out = torch.empty(2, 5000, dtype=torch.float16, device=DEVICE)
    _, work = fused(rows, out=out)
    wanted = rows.wanted()[1]
    close = work.cpu().double() / workspace_gain(torch.float16) / wanted - 1
    assert wanted.abs().median() < 6e-5  # the smallest normal number
    assert close.abs().median() < 5e-4


def test_nan_in_a_logit_is_not_hidden(softmax_form):
    logits = torch.randn(3, 40)
    logits[0, 5] = logits[1, 6] = torch.nan
    losses, gradient = fused(Rows(logits, [[4], [6], [0]]))
    assert losses.isnan().tolist() == [True, True, False]
    assert gradient[:2].isnan().any(1).all()
    assert gradient[2].isfinite().all()


def test_runs_are_bitwise_equal(softmax_form):
    rows = Rows(torch.randn(2, 60), [[5, 9, 5], [59]], 3.0)
    for one, two in zip(fused(rows), fused(rows), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("scale", [1.5, torch.tensor(1.5), torch.tensor([1.5], dtype=torch.float16)])
def test_the_scale_may_be_a_number_or_a_tensor(scale):
    rows = Rows(torch.randn(2, 40), [[4], [7]], 1.5)
    wanted = fused(rows)
    rows.scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    for one, two in zip(wanted, fused(rows), strict=True):
        assert torch.equal(one, two)


def loss_by_kernels(q, p, scale, problem, step):
    """What `chunked_loss` computes with the kernel: sum of losses, and its gradients in q and p without `scale`."""
    losses, grad_q, grad_p = [], [], torch.zeros_like(p)
    for at in range(0, q.shape[0], step):
        block = q[at : at + step]
        loss, kept = q.new_empty(block.shape[0]), q.new_empty(2, problem.targets[1].shape[0])
        work = softmax.gradient(block @ p.T, scale, problem.rows(at, at + block.shape[0]), kept, loss, True)
        losses.append(loss)
        grad_q.append(work @ p)
        grad_p += work.T @ block
    return torch.cat(losses).sum(), torch.cat(grad_q), grad_p


@pytest.mark.parametrize("dim", [1, 32, 384])
@pytest.mark.parametrize("both", [False, True])
def test_blocks_of_a_batch_add_up_to_the_reference(dim, both):
    q, p = (torch.randn(n, dim, device=DEVICE) / math.sqrt(dim) for n in (13, 31))
    labels = target_lists(csr([[i, (i * 5) % 31] if i % 4 else [] for i in range(13)]), q, p)
    documents = torch.arange(31, device=DEVICE) // 3
    positives = csr([[i % 11, 40] for i in range(13)])
    problem = build_problem(labels, documents, *positives)
    loss, grad_q, grad_p = (x / 13 for x in loss_by_kernels(q, p, torch.tensor([4.0], device=DEVICE), problem, 5))
    if both:
        anchors, count, other = transpose(problem, 31)
        loss_p, grad_anchors, grad_rows = (x / count for x in loss_by_kernels(p[anchors], q, 4.0, other, 5))
        loss = (loss + loss_p) / 2
        grad_q = (grad_q + grad_rows) / 2
        grad_p = grad_p.index_add(0, anchors, grad_anchors) / 2
    leaves = [q.double().requires_grad_(), p.double().requires_grad_()]
    wanted = contrastive_loss_reference(
        *leaves, labels=labels, doc_ids=documents, positives=positives, scale=4.0, bidirectional=both
    )
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip((grad_q, grad_p), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(4.0 * mine.double(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tiling", [Tiling(5, 31), Tiling(13, 31), Tiling(6, 12)])
def test_half_precision_goes_through_chunks_and_tiles(tiling, monkeypatch):
    product, add_product = torch.mm, torch.addmm
    if DEVICE == "cpu":  # whose products of half precision are not fp32
        monkeypatch.setattr(torch, "mm", lambda a, b, *, out_dtype, out: product(a.float(), b.float(), out=out))
        monkeypatch.setattr(
            torch, "addmm", lambda total, a, b, *, out_dtype, out: add_product(total, a.float(), b.float(), out=out)
        )
    monkeypatch.setattr(contrastive_chunks, "default_tiling", lambda *_: tiling)
    q, p = (torch.randn(n, 8, device=DEVICE).half() for n in (13, 31))
    documents = torch.arange(31, device=DEVICE) // 3
    targets = target_lists(csr([[i, (i * 5) % 31] for i in range(13)]), q, p)
    problem = build_problem(targets, documents, None, None)
    losses, *gradients = contrastive_chunks.chunked_loss(
        q, p, torch.tensor(2.0), problem, backend="triton", chunk_rows=0, need_q=True, need_p=True
    )
    leaves = [q.double().requires_grad_(), p.double().requires_grad_()]
    wanted = 13 * contrastive_loss_reference(*leaves, labels=targets, doc_ids=documents, scale=2.0)
    torch.testing.assert_close(losses.sum().double(), wanted, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(2.0 * mine.double() / workspace_gain(torch.float16), theirs, rtol=1e-3, atol=3e-3)


def pairwise_inputs(batch, negatives, dim, dtype=torch.float32, masked=True):
    leaves = [torch.randn(batch, dim), torch.randn(batch, dim), torch.randn(batch, negatives, dim)]
    leaves = [leaf.to(DEVICE, dtype) for leaf in leaves]
    mask = torch.rand(batch, negatives, device=DEVICE) < 0.6 if masked else None
    return leaves, mask


def check_pairwise(leaves, mask, scale, rtol=1e-5, atol=1e-6):
    poisoned = leaves[2].clone()
    if mask is not None:
        poisoned[~mask] = torch.nan
    number = scale if isinstance(scale, float) else scale.item()
    loss, *gradients = pairwise.compute_pairwise(*leaves[:2], poisoned, scale, mask, True)
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    wide.append(torch.tensor(number, dtype=torch.float64, device=DEVICE, requires_grad=True))
    wanted = pairwise_loss_reference(*wide[:3], scale=wide[3], mask=mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=rtol, atol=atol)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, wide), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("batch", "negatives", "dim", "masked"),
    [
        (1, 1, 1, False),
        (1, 1, 1, True),
        (63, 1, 32, False),
        (65, 1, 5, True),
        (2, 7, 384, True),
        (2, 33, 40, False),
        (2, 70, 9, True),
        (3, 0, 8, False),
    ],
)
def test_pairwise_rows_of_any_shape_give_the_reference(batch, negatives, dim, masked):
    leaves, mask = pairwise_inputs(batch, negatives, dim, masked=masked)
    check_pairwise(leaves, mask, torch.tensor([0.7], device=DEVICE))


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(0, 4),
    negatives=st.integers(0, 9),
    dim=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1.0, 3.5, -2.0]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_pairwise_problem_gives_the_reference(batch, negatives, dim, scale, masked, seed):
    torch.manual_seed(seed)
    leaves, mask = pairwise_inputs(batch, negatives, dim, masked=masked)
    check_pairwise(leaves, mask, scale)


def test_a_row_wider_and_longer_than_a_tile_is_visited_in_parts(monkeypatch):
    monkeypatch.setattr(pairwise, "TILE", 64)
    check_pairwise(*pairwise_inputs(2, 7, 150), 0.5)
    check_pairwise(*pairwise_inputs(2, 7, 20), 0.5)


@pytest.mark.parametrize("dtype", HALVES)
def test_pairwise_takes_half_precision_and_computes_in_fp32(dtype):
    check_pairwise(*pairwise_inputs(3, 5, 60, dtype), 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_pairwise_differences_near_700_neither_overflow_nor_vanish(sign):
    leaves, _ = pairwise_inputs(2, 3, 49, masked=False)
    leaves[0].fill_(1), leaves[1].fill_(0), leaves[2].fill_(sign * 14.25)
    check_pairwise(leaves, None, 1.0, rtol=1e-6)
    if sign > 0:
        assert pairwise.compute_pairwise(*leaves, 1.0, None, False)[0].item() == 14.25 * 49


def test_a_small_pairwise_loss_keeps_its_relative_accuracy():
    leaves, _ = pairwise_inputs(2, 3, 4, masked=False)
    leaves[0].fill_(1), leaves[1].fill_(0), leaves[2].fill_(-10)
    check_pairwise(leaves, None, 1.0, rtol=1e-5, atol=0)


def test_without_need_pairwise_returns_no_gradient():
    leaves, mask = pairwise_inputs(3, 2, 8)
    loss, *gradients = pairwise.compute_pairwise(*leaves, 1.0, mask, False)
    torch.testing.assert_close(loss, pairwise.compute_pairwise(*leaves, 1.0, mask, True)[0], rtol=0, atol=0)
    assert [g.numel() for g in gradients] == [0] * 4


def test_pairwise_takes_strided_inputs():
    leaves, mask = pairwise_inputs(3, 2, 8)
    strided = [torch.stack([leaf, leaf], -1)[..., 0] for leaf in leaves]
    for one, two in zip(
        pairwise.compute_pairwise(*leaves, 1.0, mask, True),
        pairwise.compute_pairwise(*strided, 1.0, mask.T.contiguous().T, True),
        strict=True,
    ):
        assert torch.equal(one, two)


def pool_case(lengths, dim, dtype=torch.float32, norm="l2"):
    hidden = torch.randn(sum(lengths), dim).to(DEVICE, dtype)
    cu = torch.tensor([0, *lengths], dtype=torch.int32, device=DEVICE).cumsum(0, dtype=torch.int32)
    parameters = [torch.randn(dim, device=DEVICE) if norm == "layernorm" else None for _ in range(2)]
    return hidden, cu, parameters


def check_pool(hidden, cu, parameters, mode, norm, eps=1e-12, out_dtype=torch.float32, grad_dtype=torch.float32):
    weight, bias = parameters
    out, *saved = pooling.compute_pool(hidden, cu, weight, bias, mode, norm, eps, out_dtype, True)
    leaves = [t.double().requires_grad_() for t in (hidden, *parameters) if t is not None]
    named = dict(zip(("weight", "bias"), leaves[1:], strict=False))
    wanted = pool_normalize_reference(leaves[0], cu, mode=mode, norm=norm, eps=eps, **named)
    assert out.dtype == out_dtype
    slack = max(1e-5, 2 * torch.finfo(out_dtype).eps)
    torch.testing.assert_close(out.double(), wanted, rtol=slack, atol=slack / 10, equal_nan=True)
    upstream = torch.randn_like(wanted)
    upstream[cu.diff() == 0] = torch.nan  # an empty sequence takes no gradient
    gradients = pooling.compute_pool_backward(
        upstream.float(), cu, weight, out, *saved, mode, norm, eps, hidden.shape[0], norm == "layernorm", grad_dtype
    )
    upstream = torch.where((cu.diff() == 0)[:, None], 0, upstream)
    theirs = torch.autograd.grad(wanted, leaves, upstream)
    slack = max(2e-5, 2 * torch.finfo(grad_dtype).eps)
    assert gradients[0].dtype == grad_dtype
    for mine, reference in zip(gradients, theirs, strict=norm == "layernorm"):
        torch.testing.assert_close(mine.double(), reference, rtol=slack, atol=slack, equal_nan=True)
    return out, saved, gradients


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("lengths", "dim"), [((3, 0, 1, 20, 8, 0), 17), ((9,), 384), ((0, 2), 1), ((1, 0), 32)])
def test_pooling_of_any_shape_gives_the_reference(mode, norm, lengths, dim):
    eps = 1e-5 if norm == "layernorm" else 1e-12
    check_pool(*pool_case(lengths, dim, norm=norm), mode, norm, eps)


@pytest.mark.parametrize(("mode", "count"), [("mean", 127), ("max", 65), ("last", 63)])
def test_pooling_of_many_sequences_gives_the_reference(mode, count):
    lengths = [(i * 7) % 4 for i in range(count)]
    check_pool(*pool_case(lengths, 5), mode, "l2")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALVES)
def test_pooling_takes_and_gives_half_precision(mode, dtype):
    hidden, cu, parameters = pool_case((3, 12), 40, dtype)
    check_pool(hidden, cu, parameters, mode, "l2", out_dtype=dtype, grad_dtype=dtype)
    check_pool(hidden.float(), cu, parameters, mode, "none", out_dtype=dtype)


def test_pooling_sums_half_precision_in_fp32():
    hidden = torch.ones(300, 1, dtype=torch.float16, device=DEVICE)
    hidden[0] = 2048  # where 2048 + 1 == 2048
    out, *_ = check_pool(hidden, torch.tensor([0, 300], dtype=torch.int32, device=DEVICE), (None, None), "mean", "none")
    torch.testing.assert_close(out.cpu(), torch.tensor([[(2048 + 299) / 300]]))


def test_parameter_gradients_are_summed_over_all_programs(monkeypatch):
    monkeypatch.setattr(pooling, "PROGRAMS", 3)
    check_pool(*pool_case([2, 0, 1, 3, 0, 1, 1, 2], 7, norm="layernorm"), "mean", "layernorm", 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_pooling_of_no_sequences_gives_empty_results_and_gradients_of_zero(norm):
    _, _, gradients = check_pool(*pool_case((), 6, norm=norm), "mean", norm)
    assert [g.shape for g in gradients] == [(0, 6), *[(6 if norm == "layernorm" else 0,)] * 2]
    assert not any(g.any() for g in gradients)


def test_the_first_maximum_wins_and_nan_is_the_largest():
    columns = [[1.0] * 20, [-math.inf] * 20, [0.0] * 20, [0.0] * 20, [math.inf] * 20]
    columns[0][11] = columns[0][13] = 2.0
    columns[2][9] = columns[2][12] = math.nan
    columns[3][19] = 1.0
    hidden = torch.tensor(columns, device=DEVICE).T.contiguous()
    cu = torch.tensor([0, 0, 20], dtype=torch.int32, device=DEVICE)
    out, _, _, argmax = pooling.compute_pool(hidden, cu, None, None, "max", "none", 1e-12, torch.float32, True)
    assert argmax.tolist() == [[-1] * 5, [11, 0, 9, 19, 0]]
    torch.testing.assert_close(out[1], hidden.T.gather(1, argmax[1:].T.long())[:, 0], equal_nan=True, rtol=0, atol=0)
    check_pool(torch.where(hidden.isfinite(), hidden, 3.0), cu, (None, None), "max", "l2")


def test_a_zero_row_has_the_l2_norm_and_gradient_of_torch():
    hidden = torch.zeros(3, 4, device=DEVICE)
    hidden[2] = 1e-3
    cu = torch.tensor([0, 2, 3], dtype=torch.int32, device=DEVICE)
    check_pool(hidden, cu, (None, None), "mean", "l2", eps=1e-2)


def test_what_the_cpu_kernel_saves_is_what_this_one_saves():
    from ance_fast.ops.pool_normalize_cpu import compute_pool

    for mode in MODES:
        for norm in NORMS:
            hidden, cu, _ = pool_case((3, 0, 9), 6)
            arguments = (cu.cpu(), None, None, mode, norm, 1e-5, torch.float32)
            for save in (True, False):
                wanted = compute_pool(hidden.cpu(), *arguments, save)
                mine = pooling.compute_pool(hidden, cu, *arguments[1:], save)
                torch.testing.assert_close([t.cpu() for t in mine], list(wanted))


def test_pooling_takes_strided_inputs():
    hidden, cu, _ = pool_case((3, 4), 6)
    strided = torch.stack([hidden, hidden], -1)[..., 0]
    assert not strided.is_contiguous()
    for one, two in zip(
        *(pooling.compute_pool(h, cu, None, None, "max", "l2", 1e-12, torch.float32, True) for h in (hidden, strided)),
        strict=True,
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offsets", [[-5, 3, 30], [8, 2, 12], [2**31 - 1, 0, -(2**31)], [4, 12, 12]])
def test_wrong_offsets_reach_no_memory_outside(monkeypatch, mode, offsets):
    guard, tokens, dim, buffers, new_empty = 4096, 10, 8, [], torch.Tensor.new_empty

    def guarded(like, shape, dtype=None, **options):
        if options:  # the interpreter's own
            return new_empty(like, shape, dtype=dtype, **options)
        size = math.prod(shape)
        buffers.append(torch.full((size + 2 * guard,), 7, dtype=dtype or like.dtype, device=DEVICE))
        return buffers[-1][guard : guard + size].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", guarded)
    memory = torch.full((tokens * dim + 2 * guard,), torch.nan, device=DEVICE)
    hidden = memory[guard:-guard].view(tokens, dim).normal_()
    cu, weight = torch.tensor(offsets, dtype=torch.int32, device=DEVICE), torch.ones(dim, device=DEVICE)
    settings = (mode, "layernorm", 1e-5)
    out, *saved = pooling.compute_pool(hidden, cu, weight, weight, *settings, torch.float32, True)
    gradients = pooling.compute_pool_backward(
        torch.ones_like(out), cu, weight, out, *saved, *settings, tokens, True, torch.float32
    )
    assert out.isfinite().all()
    assert len(buffers) == 6
    for buffer in buffers:
        assert (buffer[:guard] == 7).all()
        assert (buffer[-guard:] == 7).all()
    for row in range(2):
        begin = min(max(offsets[row], 0), tokens)
        end = min(max(offsets[row + 1], begin), tokens)
        one = torch.tensor([0, end - begin], dtype=torch.int32, device=DEVICE)
        wanted = pool_normalize_reference(hidden[begin:end], one, mode=mode, norm="layernorm", eps=1e-5)
        torch.testing.assert_close(out[row : row + 1], torch.where(one[1] > 0, wanted + 1, 0.0))
        assert gradients[0][begin:end].isfinite().all()


def test_a_row_too_wide_for_the_registers_is_refused():
    hidden, cu, _ = pool_case((1,), 16385)
    with pytest.raises(ConfigError, match="hidden is 16385 wide"):
        pooling.compute_pool(hidden, cu, None, None, "mean", "l2", 1e-12, torch.float32, True)
