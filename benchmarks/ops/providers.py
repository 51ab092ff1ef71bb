"""The contestants, and why one of them does not run.

A provider turns a problem into an `Attempt`: what to call, and the tensors whose gradients to ask for. Rivals are
imported when first used: they come with the extra `bench` and import Triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ance_fast.ops import contrastive_loss, pairwise_loss, pool_normalize
from benchmarks.ops import eager
from benchmarks.ops.cases import Case
from benchmarks.ops.problems import Contrastive, Pairwise, Pool, Problem, Step

BASELINE = "eager fp32"


def _unchanged(gradient: Tensor) -> Tensor:
    return gradient


@dataclass(frozen=True)
class Attempt:
    """`packed` brings the first gradient to the layout of the problem, for the check alone."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    packed: Callable[[Tensor], Tensor] = _unchanged


@dataclass(frozen=True)
class Provider:
    """`absent` says why the provider cannot run a case (None: it can). An error of a provider that is `ours` ends the
    run."""

    name: str
    note: str
    ops: frozenset[str]
    attempt: Callable[[Problem, Case], Attempt]
    absent: Callable[[Case, Problem], str | None] = lambda _case, _problem: None
    ours: bool = False


def step_of(attempt: Attempt, upstream: Tensor | None) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward pass as one call that returns the result and the gradients of the leaves."""
    if not attempt.leaves:

        def forward_only() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (attempt.forward(),)

        return forward_only

    def both() -> tuple[Tensor, ...]:
        out = attempt.forward()
        return out.detach(), *torch.autograd.grad(out, attempt.leaves, upstream)

    return both


def providers() -> list[Provider]:
    """The baseline first."""
    every = frozenset({"contrastive", "pool", "pairwise", "step"})
    rival = frozenset({"contrastive"})
    autocast = every - {"pool"}  # which has no product for autocast to narrow
    pool = frozenset({"pool"})
    return [
        Provider(BASELINE, "plain torch on the same inputs and masks", every, _eager),
        Provider("eager autocast", "bf16 (fp16 for fp16 inputs), logits too", autocast, _autocast),
        Provider("eager padded fp32", "the same sequences, padded to the longest beforehand", pool, _padded),
        Provider("torch.compile fp32", "of eager fp32", every, _compiled, _no_compiler),
        Provider("torch.compile autocast", "of eager autocast", autocast, _compiled_autocast, _no_compiler),
        Provider("torch.compile padded fp32", "of eager padded fp32", pool, _compiled_padded, _no_compiler),
        Provider(
            "torch linear_cross_entropy",
            "torch's own chunked form, its default chunks; without masks",
            rival,
            _linear_cross_entropy,
            _no_linear_cross_entropy,
        ),
        Provider(
            "liger-kernel",
            "fused linear cross entropy, weight gradient added in fp32; without masks",
            rival,
            _liger,
            _rival("liger_kernel"),
        ),
        Provider("inf-cl", "flash loss, computed in TF32; without masks", rival, _inf_cl, _rival("inf_cl")),
        Provider(
            "cut-cross-entropy exact",
            "gradient filter off; without masks",
            rival,
            _cut_cross_entropy,
            _rival("cut_cross_entropy"),
        ),
        Provider(
            "cut-cross-entropy torch_compile",
            "its form for machines without its kernels: the whole matrix under torch.compile; without masks",
            rival,
            _cut_cross_entropy_compiled,
            _no_cut_cross_entropy_compiled,
        ),
        Provider("ours (auto)", "the backend that dispatch chooses", every, _ours("auto"), ours=True),
        Provider("ours (torch)", 'backend="torch"', every, _ours("torch"), ours=True),
    ]


def _no_compiler(case: Case, _: Problem) -> str | None:
    if case.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler on a CPU; none on PATH"
    return None


def _no_linear_cross_entropy(_: Case, problem: Problem) -> str | None:
    missing = None if hasattr(torch.nn, "LinearCrossEntropyOptions") else f"torch {torch.__version__} does not have it"
    return _unmasked(problem) or missing


def _rival(module: str) -> Callable[[Case, Problem], str | None]:
    def absent(case: Case, problem: Problem) -> str | None:
        cuda = "needs CUDA: it has this loss as Triton kernels alone" if case.device == "cpu" else None
        return _unmasked(problem) or _not_installed(module) or cuda

    return absent


def _no_cut_cross_entropy_compiled(case: Case, problem: Problem) -> str | None:
    other = "for machines without its kernels; see cut-cross-entropy exact" if case.device == "cuda" else None
    return _unmasked(problem) or _not_installed("cut_cross_entropy") or other or _no_compiler(case, problem)


def _unmasked(problem: Problem) -> str | None:
    masked = isinstance(problem, Contrastive) and problem.doc_ids is not None
    return "has no masks; see the shape without masks" if masked else None


def _not_installed(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else "not installed; pip install 'ance_fast[bench]'"


_EAGER: dict[type, Callable[[Any], Tensor]] = {
    Contrastive: eager.contrastive,
    Pool: eager.pool,
    Pairwise: eager.pairwise,
    Step: eager.step,
}
_EAGER_AUTOCAST: dict[type, Callable[[Any], Tensor]] = {
    Contrastive: eager.contrastive_autocast,
    Pairwise: eager.pairwise_autocast,
    Step: eager.step_autocast,
}


def _eager(problem: Problem, case: Case) -> Attempt:
    form = _EAGER[type(problem)]
    return Attempt(lambda: form(problem), problem.leaves)


def _compiled(problem: Problem, case: Case) -> Attempt:
    form = torch.compile(_EAGER[type(problem)], dynamic=False)
    return Attempt(lambda: form(problem), problem.leaves)


def _autocast(problem: Problem, case: Case) -> Attempt:
    return _under_autocast(_EAGER_AUTOCAST[type(problem)], problem, case)


def _compiled_autocast(problem: Problem, case: Case) -> Attempt:
    return _under_autocast(torch.compile(_EAGER_AUTOCAST[type(problem)], dynamic=False), problem, case)


def _under_autocast(form: Callable[[Any], Tensor], problem: Problem, case: Case) -> Attempt:
    dtype = torch.float16 if case.dtype == torch.float16 else torch.bfloat16

    def forward() -> Tensor:
        with torch.autocast(case.device, dtype):
            return form(problem)

    return Attempt(forward, problem.leaves)


def _padded(problem: Problem, case: Case) -> Attempt:
    return _from_padded(eager.pool_padded, problem)


def _compiled_padded(problem: Problem, case: Case) -> Attempt:
    return _from_padded(torch.compile(eager.pool_padded, dynamic=False), problem)


def _from_padded(form: Callable[[Pool, Tensor, Tensor], Tensor], problem: Problem) -> Attempt:
    """Padding happens before the clock starts: a model that does not pack hands over padded rows."""
    assert isinstance(problem, Pool)
    lengths = torch.tensor(problem.lengths, device=problem.hidden.device)
    mask = torch.arange(max(problem.lengths), device=lengths.device)[None, :] < lengths[:, None]
    padded = problem.hidden.new_zeros(*mask.shape, problem.hidden.shape[1])
    padded[mask] = problem.hidden.detach()
    leaves = (padded.requires_grad_(), *problem.leaves[1:]) if problem.leaves else ()
    return Attempt(lambda: form(problem, padded, mask), leaves, lambda gradient: gradient[mask])


def _linear_cross_entropy(problem: Problem, case: Case) -> Attempt:
    """Gradients computed in the forward pass too, the candidates as the weight."""
    assert isinstance(problem, Contrastive)
    options = torch.nn.LinearCrossEntropyOptions()
    target = torch.arange(problem.q.shape[0], device=problem.q.device)
    return Attempt(
        lambda: torch.nn.functional.linear_cross_entropy(problem.q * problem.scale, problem.p, target, options=options),
        problem.leaves,
    )


def _liger(problem: Problem, case: Case) -> Attempt:
    """Its chunked fused linear cross entropy, the candidates as the weight; gradients of the weight added in fp32."""
    assert isinstance(problem, Contrastive)
    module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    loss = module.LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
    target = torch.arange(problem.q.shape[0], device=problem.q.device)
    return Attempt(lambda: loss(problem.p, problem.q * problem.scale, target), problem.leaves)


def _inf_cl(problem: Problem, case: Case) -> Attempt:
    assert isinstance(problem, Contrastive)
    module = importlib.import_module("inf_cl")
    width = problem.q.shape[1]
    head = next(size for size in (256, 128, 64, 32, 16) if width % size == 0)  # it tiles D by a power of two
    return Attempt(
        lambda: module.cal_flash_loss(problem.q, problem.p, scale=problem.scale, head_dim=head).mean(), problem.leaves
    )


def _cut_cross_entropy(problem: Problem, case: Case) -> Attempt:
    """Without its filter, which leaves out small gradients."""
    return _cut(problem, "cce", filter_eps=None)


def _cut_cross_entropy_compiled(problem: Problem, case: Case) -> Attempt:
    return _cut(problem, "torch_compile")


def _cut(problem: Problem, form: str, **settings: object) -> Attempt:
    assert isinstance(problem, Contrastive)
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    target = torch.arange(problem.q.shape[0], device=problem.q.device)
    return Attempt(lambda: loss(problem.q * problem.scale, problem.p, target, impl=form, **settings), problem.leaves)


def _ours(backend: str) -> Callable[[Problem, Case], Attempt]:
    forms: dict[type, Callable[[Any, str], Tensor]] = {
        Contrastive: _ours_contrastive,
        Pool: _ours_pool,
        Pairwise: _ours_pairwise,
        Step: _ours_step,
    }

    def attempt(problem: Problem, case: Case) -> Attempt:
        form = forms[type(problem)]
        return Attempt(lambda: form(problem, backend), problem.leaves)

    return attempt


def _ours_contrastive(problem: Contrastive, backend: str) -> Tensor:
    return contrastive_loss(
        problem.q,
        problem.p,
        doc_ids=problem.doc_ids,
        scale=problem.scale,
        chunk_rows=problem.chunk_rows,
        backend=backend,
    )


def _ours_pool(problem: Pool, backend: str) -> Tensor:
    return pool_normalize(
        problem.hidden,
        problem.cu_seqlens,
        mode=problem.mode,
        norm=problem.norm,
        weight=problem.weight,
        bias=problem.bias,
        eps=1e-5 if problem.norm == "layernorm" else 1e-12,
        backend=backend,
    )


def _ours_pairwise(problem: Pairwise, backend: str) -> Tensor:
    return pairwise_loss(problem.q, problem.pos, problem.neg, scale=problem.scale, backend=backend)


def _ours_step(problem: Step, backend: str) -> Tensor:
    rows = _ours_pool(problem.pool, backend)
    return contrastive_loss(rows[: problem.queries], rows[problem.queries :], scale=problem.scale, backend=backend)
