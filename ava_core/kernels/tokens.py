"""What an MoE layer does to each token beside its FFN experts, one pass over memory each: the product of the gate, and
copy and constant experts. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


class _NarrowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, weight: Tensor) -> Tensor:
        x_TD, weight = x_TD.contiguous(), weight.contiguous()
        ctx.save_for_backward(x_TD, weight)
        out = x_TD.new_empty(len(x_TD), len(weight), dtype=torch.float32)
        call("ava_narrow_linear", x_TD, weight, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x_TD, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x_TD), torch.empty_like(weight)
        call("ava_narrow_linear_backward", grad.contiguous(), x_TD, weight, grad_x, grad_weight)
        return grad_x, grad_weight


def narrow_linear(x_TD: Tensor, weight: Tensor) -> Tensor:
    """x times the transposed weight (n, D) for a small n, summed and returned in float32 (T, n), as routers need it."""
    return _NarrowLinear.apply(x_TD, weight)


class _ZeroComputation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base_TD: Tensor, x_TD: Tensor, scale_T: Tensor, mix_TC: Tensor, constants_CD: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, scale_T, mix_TC, constants_CD)
        out = torch.empty_like(base_TD)
        call("ava_zero_computation", base_TD, x_TD, scale_T, mix_TC, constants_CD, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x_TD, scale_T, mix_TC, constants_CD = ctx.saved_tensors
        grad = grad.contiguous()
        grads = [torch.empty_like(t) for t in (x_TD, scale_T, mix_TC, constants_CD)]
        call("ava_zero_computation_backward", grad, x_TD, scale_T, mix_TC, constants_CD, *grads)
        return grad, *grads


def zero_computation(
    base_TD: Tensor, x_TD: Tensor, scale_T: Tensor, mix_TC: Tensor, constants_CD: Tensor | None
) -> Tensor:
    """base + scale x + mix @ constants, (T, D): adds the copy and constant experts (MoE++, arXiv 2410.07348, eq. 4, 5).

    `scale_T` and `mix_TC` are float32, the others bfloat16; without `constants_CD` there is no mix.
    """
    if constants_CD is None:
        constants_CD, mix_TC = x_TD.new_empty(0, x_TD.shape[1]), scale_T.new_empty(len(scale_T), 0)
    return _ZeroComputation.apply(
        *(base_TD.contiguous(), x_TD.contiguous(), scale_T.contiguous(), mix_TC.contiguous(), constants_CD.contiguous())
    )
