"""A layer's FFN experts as one fused operation in bfloat16: gather, grouped products with SwiGLU, weighted combine.

Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_TD: Tensor, weights_TK: Tensor, gate_up_NFD: Tensor, down_NDF: Tensor, row_TK: Tensor, slot_R: Tensor,
        token_R: Tensor, starts_N: Tensor,
    ) -> Tensor:  # fmt: skip
        activations = x_TD.new_empty(slot_R.numel(), gate_up_NFD.shape[1])
        out = torch.empty_like(x_TD)
        call(
            "ava_experts_forward",
            *(x_TD, token_R, row_TK, slot_R, weights_TK, starts_N, gate_up_NFD, down_NDF, activations, out),
        )
        ctx.save_for_backward(x_TD, weights_TK, gate_up_NFD, down_NDF, row_TK, slot_R, token_R, starts_N, activations)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TD: Tensor):
        x_TD, weights_TK, gate_up_NFD, down_NDF, row_TK, slot_R, token_R, starts_N, activations = ctx.saved_tensors
        grad_x, grad_weights = torch.empty_like(x_TD), torch.zeros_like(weights_TK)
        grad_gate_up, grad_down = torch.empty_like(gate_up_NFD), torch.empty_like(down_NDF)
        call(
            "ava_experts_backward",
            *(grad_TD.contiguous(), x_TD, token_R, row_TK, slot_R, weights_TK, starts_N, gate_up_NFD, down_NDF),
            *(activations, grad_x, grad_gate_up, grad_down, grad_weights),
        )
        return grad_x, grad_weights, grad_gate_up, grad_down, None, None, None, None


def swiglu_experts(
    x_TD: Tensor, weights_TK: Tensor, gate_up_NFD: Tensor, down_NDF: Tensor, row_TK: Tensor, slot_R: Tensor,
    token_R: Tensor, starts_N: Tensor,
) -> Tensor:  # fmt: skip
    """sum_k weights[t, k] E_k(x_t) over the occupied slots k of each token t, E_k being the slot's expert: (T, D).

    Args:
        x_TD: bfloat16, as are the experts' weights.
        weights_TK: gate values, computed with in float32.
        gate_up_NFD, down_NDF: (N, 2F, D), gate first, and (N, D, F).
        row_TK: int64, row of each slot, -1 where it has none.
        slot_R, token_R: int64, slot (of T * K) and token of each row; rows are sorted by expert.
        starts_N: int64 (N + 1,), the first row of each expert, and R.

    Raises:
        ValueError: a tensor has another type or shape, or D or F is odd.
        IndexError: `row_TK`, `slot_R`, `token_R` and `starts_N` don't describe one permutation.
    """
    return _Experts.apply(
        x_TD.contiguous(), weights_TK.float().contiguous(), gate_up_NFD, down_NDF, row_TK, slot_R, token_R, starts_N
    )
