"""AdaDelta that can skip a step without asking the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Adadelta(torch.optim.Optimizer):
    """What `torch.optim.Adadelta` does, except where `found_inf` says that a step is to be skipped.

    torch's own has no fused kernel, and only those know `found_inf`.

    Args:
        groups: Parameters with a `weight_decay` each.
        lr: Multiplies the steps.
        rho: How slowly the averages move, in [0, 1).
        eps: Added under both roots.

    Attributes:
        found_inf: On the parameters' device; 1 leaves weights and averages as they are, 0 or None does the step.

    Source: Zeiler 2012, "ADADELTA: an adaptive learning rate method" (arXiv 1212.5701), algorithm 1.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], *, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6) -> None:
        super().__init__(groups, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step."""
        good = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        for group in self.param_groups:
            for parameter in (each for each in group["params"] if each.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["square_avg"], state["acc_delta"] = (torch.zeros_like(parameter) for _ in range(2))
                gradient = torch.add(parameter.grad, parameter, alpha=group["weight_decay"])
                if self.found_inf is not None:
                    gradient = torch.where(self.found_inf > 0, 0.0, gradient)
                square_avg, acc_delta = state["square_avg"], state["acc_delta"]
                weight = (1.0 - group["rho"]) * good
                square_avg.add_((gradient.square() - square_avg) * weight)
                delta = (acc_delta + group["eps"]).sqrt() / (square_avg + group["eps"]).sqrt() * gradient
                acc_delta.add_((delta.square() - acc_delta) * weight)
                parameter.sub_(delta * (group["lr"] * good))
