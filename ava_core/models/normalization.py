"""RMSNorm (arXiv 1910.07467). Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ava_core import kernels


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (or wider), returned in the input's type."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if kernels.usable(x, self.weight):
            return kernels.rms_norm(x, self.weight, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(x.dtype)
