"""Optimisers: AdamW and Muon, with one rule for which parameter gets what.

A parameter is *hidden* if it is a weight matrix (or a stack of them) inside a decoder layer: attention and
expert projections. Embedding, head, router, norms, biases and the constants of constant experts aren't.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OPTIMIZERS = ("adamw", "muon")

_HIDDEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon should update this parameter: by name, for a router is a matrix too and isn't one of them."""
    return parameter.ndim >= 2 and name.removesuffix(".weight").endswith(_HIDDEN)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay pulls matrices towards zero; norms, biases and constant vectors are left alone."""
    return parameter.ndim >= 2 and not name.endswith(("constants", "residual_weight", "norm.weight"))


# Coefficients of a quintic a x + b x^3 + c x^5 that drives singular values towards 1 in few iterations
# (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Replace the singular values of (..., m, n) matrices by values near 1 (Newton-Schulz iteration).

    Works on a batch of matrices at once; computed in `dtype`, returned in the input's type.
    """
    x = matrix.to(dtype)
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    shape = x.shape
    x = x.reshape(-1, *shape[-2:])
    # The iteration needs a spectral norm of at most 1; the Frobenius norm bounds it.
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(dtype)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.view(shape)
    return (x.mT if transposed else x).to(matrix.dtype)


class Muon(Optimizer):
    """Muon for hidden matrices and AdamW for the rest, as one optimiser.

    Muon: the Nesterov momentum of the gradient is orthogonalised and scaled by 0.2 sqrt(max(m, n)), which
    gives the update the root mean square of a typical AdamW update, so both share one learning rate and one
    weight decay (Moonlight, arXiv 2502.16982, eq. 4). A 3-D parameter is a stack of matrices; matrices of one
    shape are batched across parameters.

    Groups carry `algorithm`: "muon" or "adamw". State: `momentum`, or `exp_avg`, `exp_avg_sq`, and `step` as
    a tensor; all of it goes through `state_dict`, so a resumed run is bit-exact.

    Args:
        params: parameter groups with `algorithm` set.
        lr: learning rate of groups that set none.
        momentum: of Muon.
        newton_schulz_steps: iterations of the orthogonalisation.
        betas, eps: of AdamW.
        weight_decay: decoupled, scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[dict],
        lr: float = 1e-3,
        momentum: float = 0.95,
        newton_schulz_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "newton_schulz_steps": newton_schulz_steps,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "algorithm": "adamw",
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if group["algorithm"] == "muon":
                self._muon(pairs, group)
            else:
                self._adamw(pairs, group)
        return loss

    def _muon(self, pairs: list[tuple[Tensor, Tensor]], group: dict) -> None:
        # Matrices of one shape go through the iteration together, whatever parameter they come from.
        batches: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
        for p, grad in pairs:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            momentum = state["momentum"]
            momentum.lerp_(grad, 1 - group["momentum"])
            update = grad.lerp(momentum, group["momentum"])
            key = (*p.shape[-2:], p.dtype, p.device)
            batches.setdefault(key, []).append((p, update.view(-1, *p.shape[-2:])))
        for (m, n, *_), members in batches.items():
            stacked = torch.cat([update for _, update in members])
            stacked = orthogonalize(stacked, group["newton_schulz_steps"])
            scale = 0.2 * max(m, n) ** 0.5
            counts = [update.shape[0] for _, update in members]
            for (p, _), update in zip(members, stacked.split(counts), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)

    def _adamw(self, pairs: list[tuple[Tensor, Tensor]], group: dict) -> None:
        if not pairs:
            return
        for p, _ in pairs:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p, _ in pairs]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [p for p, _ in pairs],
            [grad for _, grad in pairs],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
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


def build_optimizer(
    model: nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
    newton_schulz_steps: int = 5,
    embedding_learning_rate: float | None = None,
) -> Optimizer:
    """Optimiser over the trainable parameters of `model`, each exactly once, tied ones too.

    Args:
        name: "adamw" (PyTorch's fused kernel) or "muon".
        learning_rate: peak; a schedule scales it.
        weight_decay: of matrices; norms, biases and constants have none.
        betas, eps: of AdamW.
        momentum, newton_schulz_steps: of Muon.
        embedding_learning_rate: with "muon", the peak for everything that AdamW updates; None: the same.

    Raises:
        ValueError: an unknown name, or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer = {name!r}: must be one of {', '.join(OPTIMIZERS)}")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate = {learning_rate}: must be > 0")
    if weight_decay < 0:
        raise ValueError(f"weight_decay = {weight_decay}: must be >= 0")
    groups: dict[tuple[str, bool], dict] = {}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        algorithm = "muon" if name == "muon" and is_hidden_matrix(key, parameter) else "adamw"
        decayed = is_decayed(key, parameter)
        group = groups.setdefault((algorithm, decayed), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = weight_decay if decayed else 0.0
        if name == "muon":
            group["algorithm"] = algorithm
            adamw_rate = embedding_learning_rate or learning_rate
            group["lr"] = learning_rate if algorithm == "muon" else adamw_rate
    if name == "adamw":
        return torch.optim.AdamW(list(groups.values()), lr=learning_rate, betas=betas, eps=eps, fused=True)
    return Muon(
        list(groups.values()),
        lr=learning_rate,
        momentum=momentum,
        newton_schulz_steps=newton_schulz_steps,
        betas=betas,
        eps=eps,
    )
