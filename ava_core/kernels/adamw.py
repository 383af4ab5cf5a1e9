"""AdamW on float32 masters of bfloat16 weights."""

from __future__ import annotations

from torch import Tensor

from ava_core.kernels.library import call


def adamw_with_master(
    weight: Tensor, grad: Tensor, master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *,
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """One update in place (arXiv 1711.05101, algorithm 2) of the float32 master and averages, and of the weight."""
    beta1, beta2 = betas
    corrections = (1 - beta1**step, 1 - beta2**step)
    rates = (float(lr), beta1, beta2, float(eps), float(weight_decay), *corrections)
    call("ava_adamw", weight, grad.contiguous(), master, exp_avg, exp_avg_sq, *rates)
