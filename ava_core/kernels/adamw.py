"""AdamW on float32 masters of bfloat16 weights."""

from __future__ import annotations

from torch import Tensor

from ava_core.kernels.library import call


def adamw_with_master(
    weight: Tensor, grad: Tensor, master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *,
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """One step of AdamW in place (arXiv 1711.05101, algorithm 2); all tensors have one shape.

    The float32 master weight and the float32 first and second moments are updated; `weight`, bfloat16, becomes the
    rounded master. `step` counts from 1 and enters the bias corrections 1 - beta^step.

    Raises:
        ValueError: a tensor has another type or shape, or isn't contiguous.
    """
    beta1, beta2 = betas
    corrections = (1 - beta1**step, 1 - beta2**step)
    rates = (float(lr), beta1, beta2, float(eps), float(weight_decay), *corrections)
    call("ava_adamw", weight, grad.contiguous(), master, exp_avg, exp_avg_sq, *rates)
