"""Output head and token losses in chunks of tokens. Shapes: see `ava_core.models.shapes`.

The logits of a batch are its largest tensor by far (4096 tokens x 8192 entries: 128 MiB in float32, and as
much again for the softmax and the gradient). Here only one chunk of them exists at a time: its gradients are
taken at once, in the forward pass, and only those of the hidden states and of the head's weight are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core.losses.token import TokenLoss, token_nll

CHUNK_TOKENS = 1024
"""Tokens per chunk: large enough for full speed of the products, small enough to stay in a CPU's cache."""


class _ChunkedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, losses: Sequence[TokenLoss], chunk: int
    ) -> tuple[Tensor, Tensor]:
        kind = hidden_TD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        sums = torch.zeros(len(losses), device=hidden_TD.device)
        grad_hidden = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        weight_c = weight_VD.detach().to(dtype)
        # Autocast would cast the head's inputs again for every chunk.
        with torch.autocast(kind, enabled=False):
            for start in range(0, hidden_TD.shape[0], chunk):
                rows = slice(start, start + chunk)
                hidden_c = hidden_TD[rows].detach().to(dtype)
                with torch.set_grad_enabled(needs_hidden or needs_weight):
                    logits = F.linear(hidden_c, weight_c).detach().float().requires_grad_(needs_hidden or needs_weight)
                    parts = [loss(logits, labels_T[rows]).sum() for loss in losses]
                    total = torch.stack([loss.weight * part for loss, part in zip(losses, parts, strict=True)]).sum()
                sums += torch.stack([part.detach() for part in parts])
                if needs_hidden or needs_weight:
                    (grad_logits,) = torch.autograd.grad(total, logits)
                    grad_logits = grad_logits.to(dtype)
                    if grad_hidden is not None:
                        grad_hidden[rows] = grad_logits @ weight_c
                    if grad_weight is not None:
                        grad_weight += grad_logits.T @ hidden_c
        weights = torch.tensor([loss.weight for loss in losses], device=sums.device)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(sums)
        return (sums * weights).sum(), sums

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def chunked_head_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    losses: Sequence[TokenLoss],
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of the weighted losses of `hidden @ weight.T`, without holding all logits.

    Returns the weighted sum (differentiable, once) and the unweighted sum of each loss (detached).
    The products follow autocast; logits enter the losses in float32.
    """
    return _ChunkedHeadLoss.apply(hidden_TD, weight_VD, labels_T, losses, chunk)


@torch.no_grad()
def chunked_token_nll(hidden: Tensor, weight_VD: Tensor, labels: Tensor, chunk: int = CHUNK_TOKENS) -> Tensor:
    """`token_nll` of `hidden @ weight.T`, without holding all logits. Labels are aligned with `hidden`."""
    hidden_TD, labels_T = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    nll = [
        token_nll(F.linear(hidden_TD[start : start + chunk], weight_VD), labels_T[start : start + chunk])
        for start in range(0, hidden_TD.shape[0], chunk)
    ]
    return torch.cat(nll).view(labels.shape)
