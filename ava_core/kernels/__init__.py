"""Native fused kernels for training in bfloat16 on a CPU: one pass over memory where torch takes several.

`usable` says whether tensors can go to them; every caller has a path in plain torch beside them, which is the reference
that the tests hold them against. Compiled when the package is installed, see `build`.
"""

from ava_core.kernels.adamw import adamw_with_master
from ava_core.kernels.attention import attention
from ava_core.kernels.cross_entropy import cross_entropy_and_gradient
from ava_core.kernels.experts import swiglu_experts
from ava_core.kernels.library import products_pay, usable
from ava_core.kernels.linear import head_gradients, head_logits, linear
from ava_core.kernels.matrices import product_plus, symmetric_product
from ava_core.kernels.norm import norm_rotate, rms_norm
from ava_core.kernels.tokens import narrow_linear, zero_computation

__all__ = [
    "adamw_with_master",
    "attention",
    "cross_entropy_and_gradient",
    "head_gradients",
    "head_logits",
    "linear",
    "narrow_linear",
    "norm_rotate",
    "product_plus",
    "products_pay",
    "rms_norm",
    "swiglu_experts",
    "symmetric_product",
    "usable",
    "zero_computation",
]
