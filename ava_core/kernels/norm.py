"""RMSNorm, alone and fused with rotary positions, in bfloat16 with float32 inside. Shapes: `ava_core.models.shapes`."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out, scales = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        call("ava_rms_norm", x, weight, eps, out, scales)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scales = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        call("ava_rms_norm_backward", grad.contiguous(), x, weight, scales, grad_x, grad_weight)
        return grad_x, grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467), in the shape of x."""
    return _RMSNorm.apply(x, weight, eps)


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BSHA: Tensor, weight: Tensor | None, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
        B, S, H, A = x_BSHA.shape
        x_BSHA = x_BSHA.contiguous()
        out = x_BSHA.new_empty(B, H, S, A)
        scales = None if weight is None else x_BSHA.new_empty(B, S, H, dtype=torch.float32)
        call("ava_norm_rotate", x_BSHA, weight, cosines, sines, eps, out, scales)
        ctx.save_for_backward(x_BSHA, weight, cosines, sines, scales)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BHSA: Tensor):
        x, weight, cosines, sines, scales = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), None if weight is None else torch.empty_like(weight)
        call(
            "ava_norm_rotate_backward",
            *(grad_BHSA.contiguous(), x, weight, cosines, sines, scales, grad_x, grad_weight),
        )
        return grad_x, grad_weight, None, None, None


def norm_rotate(x_BSHA: Tensor, weight: Tensor | None, cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    """QK-norm and RoPE in one pass: heads of a projection, RMS-normalised with `weight` (A,) if it is given, rotated to
    their positions and transposed to (B, H, S, A).

    `cosines` and `sines` are float32, (B or 1, 1, S, A), as `RotaryEmbedding` gives them.
    """
    return _NormRotate.apply(x_BSHA, weight, cosines.contiguous(), sines.contiguous(), eps)
