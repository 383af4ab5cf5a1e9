"""Softmax attention over whole sequences, in bfloat16. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
        B, H, S, A = q_BHSA.shape
        q, k, v = q_BHSA.contiguous(), k_BGSA.contiguous(), v_BGSA.contiguous()
        out, lse = torch.empty_like(q), q.new_empty(B, H, S, dtype=torch.float32)
        call("ava_attention", q, k, v, mask, A**-0.5, out, lse)
        ctx.save_for_backward(q, k, v, out, lse, mask)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, out, lse, mask = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        call("ava_attention_backward", grad.contiguous(), q, k, v, out, lse, mask, q.shape[-1] ** -0.5, *grads)
        return *grads, None


def attention(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention (B, H, S, A), A even, scores scaled by A^-0.5; every tensor bfloat16.

    Attention is causal, and `mask` (B or 1, S), int64, says at which key each query begins to look; one that begins
    behind the query leaves it nothing, and 0. The backward pass recomputes the probabilities from the saved
    log-sum-exp, as FlashAttention's.

    Raises:
        ValueError: A is odd, H isn't a multiple of G, or a tensor has another type or shape.
        IndexError: the mask holds what is no position and not S.
    """
    mask = None if mask is None else mask.contiguous()
    return _Attention.apply(q_BHSA, k_BGSA, v_BGSA, mask)
