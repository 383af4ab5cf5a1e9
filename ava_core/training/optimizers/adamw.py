"""AdamW: PyTorch's fused kernel, or our own where it rounds the weight in the same pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ava_core import kernels
from ava_core.config.train import TrainConfig
from ava_core.training.optimizers.masters import HALF, MasteredOptimizer, gradient


class AdamW(MasteredOptimizer):
    """AdamW (arXiv 1711.05101, algorithm 2). State: `step`, `exp_avg`, `exp_avg_sq`, and `master`.

    Args:
        params: parameters or groups of them.
        lr: learning rate of groups that set none.
        betas, eps, weight_decay: as in the paper; the decay is scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **defaults: Any,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **defaults})

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            state, master = self.state[p], self.master(p)
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        rest, grads = [], []
        for p in parameters:
            grad = gradient(p)
            if p.is_contiguous() and kernels.usable(p, grad):
                self._update_natively(p, grad, group)
            else:
                rest.append(p)
                grads.append(grad.to(self.master(p).dtype))
        if not rest:
            return
        states = [self.state[p] for p in rest]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [self.master(p) for p in rest],
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=float(group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        for p in rest:
            if p.dtype in HALF:
                p.copy_(self.master(p))

    def _update_natively(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["step"] += 1
        kernels.adamw_with_master(
            *(p, grad, state["master"], state["exp_avg"], state["exp_avg_sq"]),
            step=int(state["step"]),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def build(groups: list[dict[str, Any]], config: TrainConfig) -> AdamW:
    """AdamW over `groups`, with the betas of the configuration."""
    return AdamW(groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2))
