"""Sophia-G: momentum divided by an estimate of the curvature, each coordinate clipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ava_core.config.train import TrainConfig
from ava_core.training.optimizers.masters import MasteredOptimizer, gradient


class Sophia(MasteredOptimizer):
    """Sophia with the Gauss-Newton-Bartlett estimator (arXiv 2305.14342, algorithms 2 and 3).

        m <- beta1 m + (1 - beta1) g
        h <- beta2 h + (1 - beta2) B g^ * g^                     every `interval` steps
        w <- w - lr weight_decay w - lr clip(m / max(gamma h, eps), 1)

    g^ is the gradient of the mean loss on labels drawn from the model, B the number of its tokens. The libraries have
    only Sophia-H, whose Hessian-vector products differentiate twice; our kernels can't be. State: `momentum`,
    `curvature` (h, absent before the first estimate), and `master`.

    A training step at which `due(step)` holds estimates the curvature before the update, at the same weights:

        if isinstance(optimizer, Sophia) and optimizer.due(step):  # step counts from 0
            generator = curvature_generator(seed, step, rank)
            sums, tokens = sampled_label_gradients(model, passes, generator)  # the step's micro-batches, or some
            ... with several ranks: all-reduce (sum) every tensor of `sums`, and `tokens` ...
            optimizer.update_curvature(sums, tokens)
        optimizer.step()

    The estimate neither reads nor writes `.grad`, so it may come while the accumulated gradients wait there.

    Args:
        params: parameters or groups of them.
        lr: learning rate of groups that set none.
        betas: beta1 and beta2, the paper's for language models.
        gamma: share of the curvature that divides (the paper's for Sophia-G): the smaller, the more is clipped.
        eps: least divisor; a coordinate without curvature moves by the sign of its momentum.
        weight_decay: decoupled, scaled by the learning rate.
        interval: k, steps between estimates.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.965, 0.99),
        gamma: float = 0.05,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        interval: int = 10,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.interval = interval

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, estimates the curvature."""
        return step % self.interval == 0

    @torch.no_grad()
    def update_curvature(self, gradient_sums: Mapping[Tensor, Tensor], tokens: int) -> None:
        """Take an estimate into the average: `tokens` times the square of the mean gradient.

        Args:
            gradient_sums: for each parameter the gradient of the summed loss over all `tokens` of all ranks, labels
                drawn from the model; parameters that aren't in it keep their estimate.
            tokens: predicted tokens, the estimator's B.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if p not in gradient_sums:
                    continue
                state, master = self.state[p], self.master(p)
                if "curvature" not in state:
                    state["curvature"] = torch.zeros_like(master)
                estimate = gradient_sums[p].to(master.dtype).square() / tokens
                state["curvature"].lerp_(estimate, 1 - group["betas"][1])

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            state, master = self.state[p], self.master(p)
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(master)
            momentum = state["momentum"]
            momentum.lerp_(gradient(p).to(master.dtype), 1 - group["betas"][0])
            divisor = group["gamma"] * state["curvature"] if "curvature" in state else torch.zeros_like(master)
            update = (momentum / divisor.clamp_(min=group["eps"])).clamp_(-1, 1)
            master.mul_(1 - group["lr"] * group["weight_decay"])
            master.add_(update, alpha=-group["lr"])
            if master is not p:
                p.copy_(master)


def build(groups: list[dict[str, Any]], config: TrainConfig) -> Sophia:
    """Sophia over `groups`, with the paper's constants."""
    return Sophia(groups, lr=config.learning_rate)
