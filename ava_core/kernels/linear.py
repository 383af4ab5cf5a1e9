"""Linear layers in bfloat16. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call, products_pay, usable

LEAST_ROWS = 64
"""Below it, packing the weight into the kernel's panels costs more than the product."""


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        out = x_RI.new_empty(x_RI.shape[0], weight_OI.shape[0])
        call("ava_linear", x_RI, weight_OI, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_RO: Tensor):
        x_RI, weight_OI = ctx.saved_tensors
        grad_RO = grad_RO.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x_RI)
            call("ava_linear_input", grad_RO, weight_OI, grad_x)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight_OI)
            call("ava_linear_weight", grad_RO, x_RI, grad_weight)
        return grad_x, grad_weight


def linear(x: Tensor, weight_OI: Tensor) -> Tensor | None:
    """x (..., in) times the transposed weight, (..., out), bfloat16.

    None where PyTorch is to do it: it isn't bfloat16 on a CPU, oneDNN is faster (few rows), or a width is odd.
    """
    rows = x.numel() // x.shape[-1]
    even = x.shape[-1] % 2 == 0 and weight_OI.shape[0] % 2 == 0
    if not (products_pay() and even and rows >= LEAST_ROWS and usable(x, weight_OI)):
        return None
    out = _Linear.apply(x.reshape(rows, -1).contiguous(), weight_OI.contiguous())
    return out.view(*x.shape[:-1], -1)


def head_logits(hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
    """Logits (T, V) in float32 of bfloat16 hidden states and output head; never rounded to bfloat16."""
    out = hidden_TD.new_empty(len(hidden_TD), len(weight_VD), dtype=torch.float32)
    call("ava_logits", hidden_TD, weight_VD, out)
    return out


def head_gradients(
    grad_TV: Tensor, hidden_TD: Tensor, weight_VD: Tensor, grad_hidden_TD: Tensor | None, grad_weight_VD: Tensor | None
) -> None:
    """Backward of `head_logits`: overwrite `grad_hidden_TD` (bfloat16), accumulate into `grad_weight_VD` (float32).

    Either may be None: not needed.
    """
    if grad_hidden_TD is not None:
        call("ava_linear_input", grad_TV, weight_VD, grad_hidden_TD)
    if grad_weight_VD is not None:
        call("ava_add_head_gradient", grad_TV, hidden_TD, grad_weight_VD)
