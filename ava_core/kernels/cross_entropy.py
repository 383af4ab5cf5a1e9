"""Cross-entropy of rows of logits and its gradient, in one visit."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


def cross_entropy_and_gradient(
    logits_TV: Tensor, labels_T: Tensor, *, label_smoothing: float, z_weight: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses (T,), log-sum-exps (T,), and d(loss + z_weight * lse^2) / d logits in bfloat16 (T, V).

    `logits_TV` is float32; a token whose label is negative has no loss: zeros.
    """
    T, V = logits_TV.shape
    losses, normalisers = logits_TV.new_empty(T), logits_TV.new_empty(T)
    grad = logits_TV.new_empty(T, V, dtype=torch.bfloat16) if gradient else None
    numbers = (float(label_smoothing), float(z_weight))
    call("ava_cross_entropy", logits_TV, labels_T.contiguous(), T, V, *numbers, losses, normalisers, grad)
    return losses, normalisers, grad
