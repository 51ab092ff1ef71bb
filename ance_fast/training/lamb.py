"""LAMB as microsoft/ANCE trains with it (`utils/lamb.py`), over all tensors at once and without a wait for the device.

Large-batch optimisation by You et al. (ICLR 2020), in the form of the paper's third version: Adam's step without bias
correction, for each tensor scaled by the ratio of its own length to the step's. What decides whether a run follows the
original's: no bias correction; epsilon outside the square root; the length of a tensor is clamped to [0, 10]; a ratio a
tensor, whatever group it is in, and 1 where either length is 0; weight decay is added to the step before its length is
taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from ance_fast.errors import ConfigError

CLAMP = 10.0


class Lamb(Optimizer):
    """LAMB over parameters of any device and floating dtype; two float tensors of state a parameter.

    params: tensors, or groups {"params": ..., and any of the settings}. eps: added to the root of the second moment.
    adam: take every ratio as 1, which is Adam without bias correction.

    A step is a few foreach operations a device and dtype; ratios stay on the device. It needs twice the memory of the
    parameters for its own time. `state_dict` holds everything that a later step depends on: a resumed run makes the
    same steps.

    Raises `ConfigError` for settings that cannot hold and for sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adam: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"LAMB: {name}={value}: must be a number that is not negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"LAMB: betas={betas}: must be at least 0 and below 1")
        self._norms: list[tuple[Tensor, Tensor, Tensor]] = []
        # `adam` is among the settings because these are what copies and pickles keep of an optimizer.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adam": adam})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What copies, pickles and `load_state_dict` end with: like a new optimizer's, no step has been made."""
        super().__setstate__(state)
        self._norms = []
        for group in self.param_groups:
            group.setdefault("adam", False)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step for every parameter that has a gradient; what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._norms = []
        for group in self.param_groups:
            for params in _by_kind(group["params"]):
                self._update(params, group)
        return loss

    def norms(self) -> dict[str, Tensor]:
        """Of the last step, float32 [tensors] each: "weight_norm" (clamped), "step_norm" and "trust_ratio".

        On the CPU: this waits for the device. Empty tensors before the first step.
        """
        parts = zip(*self._norms, strict=True) if self._norms else ([torch.zeros(0)],) * 3
        names = ("weight_norm", "step_norm", "trust_ratio")
        return {name: torch.cat([p.float().cpu() for p in part]) for name, part in zip(names, parts, strict=True)}

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads, first, second = [], [], []
        for param in params:
            assert param.grad is not None
            if param.grad.is_sparse:
                raise ConfigError("LAMB: a gradient is sparse; build the embedding with sparse=False")
            state = self.state[param]
            if not state:
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
            grads.append(param.grad)
            first.append(state["exp_avg"])
            second.append(state["exp_avg_sq"])
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        steps = torch._foreach_div(first, roots)
        del roots
        if group["weight_decay"]:
            torch._foreach_add_(steps, params, alpha=group["weight_decay"])
        weight_norm = torch.stack(torch._foreach_norm(params)).clamp_(0, CLAMP)
        step_norm = torch.stack(torch._foreach_norm(steps))
        # A zero step length gives infinity here, which `where` leaves out: nothing asks the device which it is.
        ratio = torch.where((weight_norm == 0) | (step_norm == 0), 1.0, weight_norm / step_norm)
        self._norms.append((weight_norm, step_norm, ratio))
        if not group["adam"]:
            torch._foreach_mul_(steps, list(ratio.unbind()))
        torch._foreach_add_(params, steps, alpha=-group["lr"])


def check_whole_tensors(distributed: str) -> None:
    """Raise `ConfigError` where processes hold parts of tensors: `distributed` is accelerate's name of the strategy."""
    if distributed != "NO" and not distributed.startswith("MULTI_"):
        raise ConfigError(
            f"optimizer='lamb' takes the length of whole tensors, and {distributed} may split them; use one process or "
            "DistributedDataParallel"
        )


def lamb_ratios(optimizer: Any) -> dict[str, float]:
    """Mean, least and greatest trust ratio of the last step, as "trust_ratio", "..._min", "..._max", of an optimizer or
    what wraps it; nothing for another than LAMB, and before its first step."""
    lamb = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(lamb, Lamb):
        return {}
    ratios = lamb.norms()["trust_ratio"]
    if not len(ratios):
        return {}
    found = {"trust_ratio": ratios.mean(), "trust_ratio_min": ratios.min(), "trust_ratio_max": ratios.max()}
    return {name: float(value) for name, value in found.items()}


def _by_kind(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those with a gradient, by device and dtype: what one foreach operation can take."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            kinds.setdefault((param.device, param.dtype), []).append(param)
    return list(kinds.values())
