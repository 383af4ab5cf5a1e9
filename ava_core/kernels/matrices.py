"""Products of stacks of matrices in bfloat16, on a CPU. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.kernels.library import call


def symmetric_product(x_Nmk: Tensor, plus_Nmm: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """alpha x xᵀ + beta plus, (N, m, m), of stacked matrices (N, m, k), k even; half the work of a product.

    `plus`, (N, m, m), must be symmetric.

    Raises:
        ValueError: k is odd, or a tensor isn't contiguous, or has another type or shape.
    """
    N, m, _ = x_Nmk.shape
    out = x_Nmk.new_empty(N, m, m)
    call("ava_symmetric", x_Nmk, plus_Nmm, alpha, beta, out)
    return out


def product_plus(a_Nmk: Tensor, b_Nkn: Tensor, plus_Nmn: Tensor, beta: float) -> Tensor:
    """a b + beta plus, (N, m, n), k even.

    Raises:
        ValueError: k is odd, or a tensor isn't contiguous, or has another type or shape.
    """
    out = torch.empty_like(plus_Nmn)
    call("ava_product", a_Nmk, b_Nkn, plus_Nmn, beta, out)
    return out
