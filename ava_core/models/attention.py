"""Grouped-query causal attention with rotary positions and optional QK-norm. Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ava_core import kernels
from ava_core.config.attention import KEPT_PROBABILITIES
from ava_core.models.blockwise import attend_by_products, attend_fused, sdpa
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.linear import Linear
from ava_core.models.normalization import RMSNorm
from ava_core.models.rope import rotate


def attend(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention (B, H, S, A); each key/value head serves H / G neighbouring query heads.

    `mask` is one of those of `masks`. A position that it excludes adds exactly nothing to the result, and gets no
    gradient from it. Without a dense mask nothing of S x S is held.

    Three implementations of one result: our native kernel on a CPU with AVX-512 BF16; matrix products in blocks for
    other training on a CPU, where `scaled_dot_product_attention` has a slow backward pass in bfloat16 (`make bench`),
    and computes all that the mask of a long sequence hides; and that function for the rest.
    """
    if _native_can(q_BHSA, k_BGSA, mask):
        return kernels.attention(q_BHSA, k_BGSA, v_BGSA, mask)
    if _products_pay(q_BHSA, k_BGSA, v_BGSA, mask):
        return attend_by_products(q_BHSA, k_BGSA, v_BGSA, mask)
    if mask is not None and mask.dim() == 2:
        return attend_fused(q_BHSA, k_BGSA, v_BGSA, mask)
    return sdpa(q_BHSA, k_BGSA, v_BGSA, mask)


def _native_can(q_BHSA: Tensor, k_BGSA: Tensor, mask: Tensor | None) -> bool:
    """Whether our native kernel applies: bfloat16 self-attention of whole sequences (S_kv = S > 1), not decoding
    against a KV cache, nor a dense mask."""
    whole = k_BGSA.shape[2] == q_BHSA.shape[2] > 1 and (mask is None or mask.dim() == 2)
    return whole and kernels.products_pay() and kernels.usable(q_BHSA, k_BGSA)


def _products_pay(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> bool:
    plain = not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(q_BHSA))
    if not (plain and q_BHSA.requires_grad and q_BHSA.device.type == "cpu"):
        return False
    queries, keys = q_BHSA.shape[2], k_BGSA.shape[2]
    hides = mask is not None and keys > KEPT_PROBABILITIES
    pays = hides or (q_BHSA.dtype == torch.bfloat16 and (mask is not None or queries == keys))
    return pays and q_BHSA.dtype == k_BGSA.dtype == v_BGSA.dtype


class Attention(nn.Module):
    """Causal self-attention of one decoder layer.

    With `qk_norm` "head" the queries and keys of each head are normalised by themselves (as in Qwen3), with
    "projection" all heads together, before they are split (as in OLMoE); both come before the rotation.
    """

    def __init__(self, config: EnhancedMoEConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.hidden_size, self.num_heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.num_key_value_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.num_key_value_heads * self.head_dim)
        self.o_proj = Linear(self.num_heads * self.head_dim, config.hidden_size)
        self.norm_whole_projection = whole = config.qk_norm == "projection"
        query_width = self.head_dim * (self.num_heads if whole else 1)
        key_width = self.head_dim * (self.num_key_value_heads if whole else 1)
        normalised = config.qk_norm != "none"
        self.q_norm = RMSNorm(query_width, config.rms_norm_eps) if normalised else nn.Identity()
        self.k_norm = RMSNorm(key_width, config.rms_norm_eps) if normalised else nn.Identity()

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Return (B, S, D). `rotary` is cos and sin of the positions; `mask` as in `attend`."""
        B, S, _ = x_BSD.shape
        q = self._position(self.q_proj(x_BSD), self.q_norm, rotary)
        k = self._position(self.k_proj(x_BSD), self.k_norm, rotary)
        v = self.v_proj(x_BSD).view(B, S, -1, self.head_dim).transpose(1, 2)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        out_BHSA = attend(q, k, v, mask)
        return self.o_proj(out_BHSA.transpose(1, 2).reshape(B, S, -1))

    def _position(self, projected_BSI: Tensor, norm: nn.Module, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Heads of a query or key projection, (B, heads, S, A), after QK-norm and RoPE."""
        heads = (*projected_BSI.shape[:2], -1, self.head_dim)
        if self.norm_whole_projection:
            projected_BSI, norm = norm(projected_BSI), nn.Identity()
        if kernels.usable(projected_BSI, *norm.parameters()):
            weight, eps = getattr(norm, "weight", None), getattr(norm, "eps", 0.0)
            return kernels.norm_rotate(projected_BSI.view(heads), weight, *rotary, eps)
        # The angles are float32; the products with the values run in the values' own type.
        x_BHSA = norm(projected_BSI.view(heads)).transpose(1, 2)
        return rotate(x_BHSA, *rotary).to(projected_BSI.dtype)
