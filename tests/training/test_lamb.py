"""LAMB is the original's: against a restatement of it in float64, a tensor at a time."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.training.lamb import Lamb, check_whole_tensors, lamb_ratios


def original(
    params: list[Tensor],
    grads: list[list[Tensor | None]],
    *,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    adam: bool = False,
) -> list[Tensor]:
    """Every tensor after the steps of `grads`: the rule of You et al., version 3, as the original's class has it."""
    after = []
    for number, param in enumerate(params):
        weight = param.detach().double().clone()
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for given_now in grads:
            grad = given_now[number]
            if grad is None:
                continue
            first = betas[0] * first + (1 - betas[0]) * grad.double()
            second = betas[1] * second + (1 - betas[1]) * grad.double() ** 2
            step = first / (second.sqrt() + eps) + weight_decay * weight
            length, stride = min(float((weight**2).sum().sqrt()), 10.0), float((step**2).sum().sqrt())
            ratio = 1.0 if adam or length == 0 or stride == 0 else length / stride
            weight = weight - lr * ratio * step
        after.append(weight)
    return after


def run(optimizer: torch.optim.Optimizer, params: list[Tensor], grads: list[list[Tensor | None]]) -> None:
    for given_now in grads:
        for param, grad in zip(params, given_now, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()


def problem(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    """Tensors whose lengths lie on every side of what the rule tells apart, and gradients of a few steps."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (200, 3), (), (2, 2), (7,)]
    params = [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]
    with torch.no_grad():
        params[1].zero_()  # a length of 0, as a bias begins
        params[2].mul_(100)  # longer than the clamp
    grads: list[list[Tensor | None]] = []
    for step in range(4):
        now: list[Tensor | None] = [torch.randn(p.shape, generator=draw, dtype=dtype) * 10.0**-step for p in params]
        now[4] = torch.zeros(2, 2, dtype=dtype)  # a step of length 0
        now[5] = None if step < 2 else now[5]  # a tensor that takes no part at first
        grads.append(now)
    return params, grads


@given(
    seed=st.integers(0, 1000),
    weight_decay=st.sampled_from([0.0, 0.01, 1.0]),
    eps=st.sampled_from([1e-8, 1e-6, 0.1]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.5)]),
    adam=st.booleans(),
)
@settings(deadline=None, max_examples=15)
def test_steps_are_the_originals(
    seed: int, weight_decay: float, eps: float, betas: tuple[float, float], adam: bool
) -> None:
    params, grads = problem(seed)
    rule: dict[str, Any] = {"lr": 1e-2, "eps": eps, "weight_decay": weight_decay, "betas": betas, "adam": adam}
    wanted = original(params, grads, **rule)
    run(Lamb(params, **rule), params, grads)
    for param, weight in zip(params, wanted, strict=True):
        torch.testing.assert_close(param.detach(), weight, rtol=1e-12, atol=1e-14)


def test_float32_weights_follow_the_float64_rule_within_rounding() -> None:
    params, grads = problem(3, torch.float32)
    wanted = original(params, grads, lr=1e-2, eps=1e-8)
    run(Lamb(params, lr=1e-2, eps=1e-8), params, grads)
    for param, weight in zip(params, wanted, strict=True):
        torch.testing.assert_close(param.detach().double(), weight, rtol=2e-6, atol=1e-7)


def test_tensors_of_several_dtypes_and_groups_have_their_own_settings_and_ratios() -> None:
    (a, b, *_), grads = problem(5)
    half = b.detach().bfloat16().requires_grad_()
    plain = [[step[0], step[1]] for step in grads]
    decayed = original([a], plain, lr=1e-2, eps=1e-8, weight_decay=0.1)
    groups = [{"params": [a], "weight_decay": 0.1}, {"params": [b, half], "lr": 1e-3}]
    optimizer = Lamb(groups, lr=1e-2, eps=1e-8)
    other = original([a, b], plain, lr=1e-3, eps=1e-8)[1]
    run(optimizer, [a, b, half], [[x, y, None if y is None else y.bfloat16()] for x, y in plain])
    torch.testing.assert_close(a.detach(), decayed[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(b.detach(), other, rtol=1e-12, atol=0)
    torch.testing.assert_close(half.detach().double(), other, rtol=0.05, atol=1e-3)
    assert len(optimizer.norms()["trust_ratio"]) == 3


def test_norms_say_what_each_tensor_was_scaled_by() -> None:
    params, grads = problem(7)
    optimizer = Lamb(params, lr=0.0)
    assert optimizer.norms()["trust_ratio"].tolist() == []
    run(optimizer, params, grads[:1])
    found = optimizer.norms()
    lengths = [min(float(param.detach().norm()), 10.0) for param in params[:5]]
    torch.testing.assert_close(found["weight_norm"], torch.tensor(lengths))
    assert found["weight_norm"][2] == 10.0
    assert found["trust_ratio"][[1, 4]].tolist() == [1.0, 1.0]
    rest = [0, 2, 3]
    torch.testing.assert_close(
        found["trust_ratio"][rest], found["weight_norm"][rest] / found["step_norm"][rest], rtol=1e-6, atol=0
    )


def test_what_is_logged_sums_up_the_ratios_and_is_nothing_for_another_optimizer() -> None:
    params, grads = problem(7)
    optimizer = Lamb(params, lr=0.0)
    assert lamb_ratios(optimizer) == {}
    run(optimizer, params, grads[:1])
    ratios = optimizer.norms()["trust_ratio"].tolist()
    logged = lamb_ratios(SimpleNamespace(optimizer=optimizer))
    wanted = {"trust_ratio": sum(ratios) / 5, "trust_ratio_min": min(ratios), "trust_ratio_max": max(ratios)}
    assert logged == pytest.approx(wanted, rel=1e-5)
    assert lamb_ratios(torch.optim.SGD(params, lr=1.0)) == {}


def test_a_run_that_is_taken_up_again_makes_the_same_steps_bit_for_bit() -> None:
    whole, grads = problem(11, torch.float32)
    run(Lamb(whole, lr=1e-2), whole, grads)
    params, _ = problem(11, torch.float32)
    first = Lamb(params, lr=1e-2)
    run(first, params, grads[:2])
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = Lamb(params, lr=1.0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    run(second, params, grads[2:])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(params, whole, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("adam", [False, True])
def test_a_copy_makes_the_same_steps(copied: Callable[[Any], Any], adam: bool) -> None:
    params, grads = problem(17)
    optimizer = Lamb(params, lr=1e-2, adam=adam)
    run(optimizer, params, grads[:2])
    others, other = copied((params, optimizer))
    assert other.norms()["trust_ratio"].tolist() == []
    run(optimizer, params, grads[2:])
    run(other, others, grads[2:])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(params, others, strict=True))
    # Settings saved before `adam` was one of them.
    state = other.state_dict()
    del state["param_groups"][0]["adam"]
    other.load_state_dict(state)
    run(other, others, grads[:1])


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    params, grads = problem(13)
    optimizer = Lamb(params, lr=1e-2, weight_decay=0.1)
    asked: list[str] = []
    for name in ("item", "__bool__", "__float__", "cpu", "tolist"):
        monkeypatch.setattr(Tensor, name, lambda self, *_, name=name: asked.append(name))
    run(optimizer, params, grads[:1])
    monkeypatch.undo()
    assert not asked


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0: must be a number that is not negative"),
        ({"eps": -1e-8}, "eps=-1e-08: must be a number"),
        ({"eps": float("inf")}, "eps=inf: must be a number"),
        ({"weight_decay": float("nan")}, "weight_decay=nan: must be a number"),
        ({"betas": (0.9, 1.0)}, "betas=.*below 1"),
    ],
)
def test_settings_that_cannot_hold_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lamb([torch.zeros(2, requires_grad=True)], **rule)


@pytest.mark.parametrize(("distributed", "refused"), [("NO", False), ("MULTI_GPU", False), ("FSDP", True)])
def test_strategies_that_split_tensors_are_refused(distributed: str, refused: bool) -> None:
    with pytest.raises(ConfigError, match=distributed) if refused else nullcontext():
        check_whole_tensors(distributed)


def test_a_sparse_gradient_is_refused() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = Lamb(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        optimizer.step()
