"""Cross-entropy and its gradient, fused: one visit of each row of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


def cross_entropy_and_gradient(
    logits_TV: Tensor, labels_T: Tensor, *, label_smoothing: float, z_weight: float, gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses (T,), log-sum-exps (T,), and d(loss + z_weight * lse^2) / d logits in bfloat16 (T, V).

    With label smoothing s the loss is -(1 - s) log p(label) - s mean(log p); `z_weight` is that of PaLM's z-loss (arXiv
    2204.02311, section 5). `logits_TV` is float32; a token whose label is -100 has no loss: zeros. Without `gradient`
    the third is None.

    Raises:
        IndexError: another label is negative, or not in the vocabulary.
    """
    losses, normalisers = logits_TV.new_empty(2, len(logits_TV))
    grad = torch.empty_like(logits_TV, dtype=torch.bfloat16) if gradient else None
    call(*("ava_cross_entropy", logits_TV, labels_T.contiguous(), label_smoothing, z_weight, losses, normalisers, grad))
    return losses, normalisers, grad
