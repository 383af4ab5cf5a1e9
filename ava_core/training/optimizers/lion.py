"""Lion: the sign of an interpolated momentum (arXiv 2302.06675, algorithm 2), with the paper's constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from ava_core.config.train import TrainConfig


class Lion(Optimizer):
    """Lion with decoupled weight decay, which is scaled by the learning rate. State: `exp_avg`, like the weights.

    Args:
        params: parameters or groups of them.
        lr: learning rate of groups that set none.
        betas: share of the momentum in the update, and of what stays of it.
        weight_decay: of groups that set none.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient; returns what `closure`, which computes them, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            share, kept = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(state["exp_avg"].lerp(p.grad, 1 - share).sign_(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 1 - kept)
        return loss


def build(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    """Lion over `groups`."""
    return Lion(groups, lr=config.learning_rate)
