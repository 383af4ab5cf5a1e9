"""Muon: updates of hidden matrices with all singular values alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ava_core import kernels
from ava_core.config.hardware import has_bfloat16_products
from ava_core.config.train import TrainConfig
from ava_core.training.optimizers.adamw import AdamW
from ava_core.training.optimizers.masters import gradient

# Coefficients of a quintic a x + b x^3 + c x^5 that drives singular values towards 1 in few iterations
# (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Replace the singular values of (..., m, n) matrices by values near 1 (Newton-Schulz iteration).

    Works on a batch of matrices at once; computed in `dtype`, by default the faster of bfloat16 and float32, given in
    the input's type.
    """
    if dtype is None:
        slow = matrix.device.type == "cpu" and not has_bfloat16_products()
        dtype = torch.float32 if slow else torch.bfloat16
    x = matrix.to(dtype)
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    shape = x.shape
    x = x.reshape(-1, *shape[-2:])
    # The iteration needs a spectral norm of at most 1; the Frobenius norm bounds it.
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(dtype)
    even = x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0
    step = _native_step if even and kernels.usable(x) and kernels.products_pay() else _step
    for _ in range(steps):
        x = step(x)
    x = x.view(shape)
    return (x.mT if transposed else x).to(matrix.dtype)


def _step(x: Tensor) -> Tensor:
    a, b, c = _QUINTIC
    gram = torch.bmm(x, x.mT)
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    return torch.baddbmm(x, polynomial, x, beta=a)


def _native_step(x: Tensor) -> Tensor:
    """`_step` in two thirds of the operations: the Gram matrix is symmetric, and so is its square."""
    a, b, c = _QUINTIC
    x = x.contiguous()
    gram = kernels.symmetric_product(x)
    polynomial = kernels.symmetric_product(gram, gram, alpha=c, beta=b)
    return kernels.product_plus(polynomial, x, x, beta=a)


class Muon(AdamW):
    """Muon for hidden matrices and AdamW for the rest, as one optimiser.

    Muon: the Nesterov momentum of the gradient is orthogonalised and scaled by 0.2 sqrt(max(m, n)), which
    gives the update the root mean square of a typical AdamW update, so both share one learning rate and one
    weight decay (Moonlight, arXiv 2502.16982, eq. 4). A 3-D parameter is a stack of matrices; matrices of one
    shape are batched across parameters.

    With `expert_interval` n > 1 a stack of experts is updated at every n-th step only, by n times the step, the stacks
    taking turns; its momentum takes in every gradient. Orthogonalising the stacks is most of what Muon costs (for d x d
    experts some 50 N d^3 operations per step and matrix, whatever the batch), and an expert sees but a part of the
    tokens of one step. What it costs and gives: benchmarks/LOG.md.

    Groups carry `algorithm`: "muon" or "adamw". State of Muon's: `momentum`, `master`, and `muon_step` of stacks.

    Args:
        params: parameter groups with `algorithm` set.
        lr: learning rate of groups that set none.
        momentum: of Muon.
        newton_schulz_steps: iterations of the orthogonalisation.
        expert_interval: steps between two updates of a stack of matrices.
        betas, eps: of AdamW.
        weight_decay: decoupled, scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[dict],
        lr: float = 1e-3,
        momentum: float = 0.95,
        newton_schulz_steps: int = 5,
        expert_interval: int = 1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        muon = {"momentum": momentum, "newton_schulz_steps": newton_schulz_steps, "algorithm": "adamw"}
        muon["expert_interval"] = expert_interval
        super().__init__(params, lr, betas, eps, weight_decay, **muon)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        if group["algorithm"] == "muon":
            self._muon(parameters, group)
        else:
            super()._update(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict) -> None:
        # Matrices of one shape go through the iteration together, whatever parameter they come from.
        batches: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
        for index, p in enumerate(parameters):
            state, master = self.state[p], self.master(p)
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(master)
            momentum, grad = state["momentum"], gradient(p).to(master.dtype)
            momentum.lerp_(grad, 1 - group["momentum"])
            if not self._is_due(p, index, group["expert_interval"]):
                continue
            update = grad.lerp(momentum, group["momentum"])
            key = (*p.shape[-2:], p.dtype, p.device)
            batches.setdefault(key, []).append((p, update.view(-1, *p.shape[-2:])))
        for (m, n, *_), members in batches.items():
            stacked = torch.cat([update for _, update in members])
            stacked = orthogonalize(stacked, group["newton_schulz_steps"])
            counts = [update.shape[0] for _, update in members]
            for (p, _), update in zip(members, stacked.split(counts), strict=True):
                rate = group["lr"] * (group["expert_interval"] if p.ndim > 2 else 1)
                master = self.master(p)
                master.mul_(1 - rate * group["weight_decay"])
                master.add_(update.view_as(p), alpha=-rate * (0.2 * max(m, n) ** 0.5))
                if master is not p:
                    p.copy_(master)

    def _is_due(self, parameter: Tensor, index: int, interval: int) -> bool:
        """Whether this step updates a parameter: matrices always, a stack of them when it is its turn."""
        if parameter.ndim < 3 or interval == 1:
            return True
        state = self.state[parameter]
        state["muon_step"] = state.get("muon_step", 0) + 1
        return (state["muon_step"] + index) % interval == 0


def build(groups: list[dict[str, Any]], config: TrainConfig) -> Muon:
    """Muon over `groups`, which say what it orthogonalises; momentum and betas are those of the configuration."""
    return Muon(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        expert_interval=config.expert_update_interval,
        betas=(config.adam_beta1, config.adam_beta2),
    )
