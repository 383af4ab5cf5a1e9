"""Grouped GEMM: one matrix product per expert over rows that are sorted by expert. Shapes: see `shapes`.

The two implementations give the same result: `grouped` is one kernel launch and reads its group sizes on the
device, `looped` needs them on the host. On a CPU they take the same time (`make bench`); `looped` has no rule about
strides there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class _LoopedLinear(torch.autograd.Function):
    """Products of row ranges with their expert's weight, written into one output.

    Autograd over `weight[e]` would allocate a full-size gradient per expert; here each expert's gradient is
    written once, into its place.
    """

    @staticmethod
    def forward(ctx, x_RI: Tensor, weight_NOI: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_RI, weight_NOI)
        ctx.counts = counts
        out_RO = x_RI.new_empty(x_RI.shape[0], weight_NOI.shape[1])
        start = 0
        for expert, count in enumerate(counts):
            if count:
                rows = slice(start, start + count)
                torch.mm(x_RI[rows], weight_NOI[expert].T, out=out_RO[rows])
                start += count
        return out_RO

    @staticmethod
    def backward(ctx, grad_RO: Tensor):
        x_RI, weight_NOI = ctx.saved_tensors
        grad_RO = grad_RO.contiguous()
        grad_x = torch.empty_like(x_RI) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight_NOI) if ctx.needs_input_grad[1] else None
        start = 0
        for expert, count in enumerate(ctx.counts):
            rows = slice(start, start + count)
            start += count
            if count == 0:
                if grad_weight is not None:
                    grad_weight[expert].zero_()
                continue
            if grad_x is not None:
                torch.mm(grad_RO[rows], weight_NOI[expert], out=grad_x[rows])
            if grad_weight is not None:
                torch.mm(grad_RO[rows].T, x_RI[rows], out=grad_weight[expert])
        return grad_x, grad_weight, None


def looped_linear(x_RI: Tensor, weight_NOI: Tensor, counts: list[int]) -> Tensor:
    """Rows (R, in), weights (N, out, in), rows per expert (they sum to R) -> (R, out)."""
    return _LoopedLinear.apply(x_RI, weight_NOI, counts)


def grouped_linear(x_RI: Tensor, weight_NOI: Tensor, ends_N: Tensor) -> Tensor:
    """Like `looped_linear` with the group ends (N,) int32 on the device instead of counts.

    Rows past the last end are left uninitialised by the kernel.
    """
    return F.grouped_mm(x_RI, weight_NOI.transpose(1, 2), offs=ends_N)
