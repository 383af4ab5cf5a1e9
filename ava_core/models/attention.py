"""Grouped-query causal attention with rotary positions and optional QK-norm. Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from ava_core import kernels
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.linear import Linear
from ava_core.models.normalization import RMSNorm
from ava_core.models.rope import rotate


def attend(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention (B, H, S, A); each key/value head serves H / G neighbouring query heads.

    `mask` is boolean (B or 1, 1, S, S_kv), True where a query may look; None is causal. A position that the mask
    excludes adds exactly nothing to the result, and gets no gradient from it.

    Three implementations of one result: our native kernel on a CPU with AVX-512 BF16;
    two batched matrix products for other bfloat16 training on a CPU, where `scaled_dot_product_attention`, slow in its
    backward pass, takes 1.3 to 1.8 times as long (`make bench`); and that function for the rest.
    """
    if _native_can(q_BHSA, k_BGSA, mask):
        return kernels.attention(q_BHSA, k_BGSA, v_BGSA, mask)
    if q_BHSA.device.type == "cpu" and q_BHSA.dtype == torch.bfloat16 and q_BHSA.requires_grad:
        return attend_by_products(q_BHSA, *_repeat_heads(q_BHSA, k_BGSA, v_BGSA), mask)
    grouped = q_BHSA.shape[1] != k_BGSA.shape[1]
    if grouped and not _kernel_groups_heads(q_BHSA, mask):
        k_BGSA, v_BGSA = _repeat_heads(q_BHSA, k_BGSA, v_BGSA)
        grouped = False
    # One query may look at the whole cache, which the causal flag (aligned upper-left) would forbid.
    causal = mask is None and q_BHSA.shape[2] > 1
    return F.scaled_dot_product_attention(q_BHSA, k_BGSA, v_BGSA, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _native_can(q_BHSA: Tensor, k_BGSA: Tensor, mask: Tensor | None) -> bool:
    """Whether our native kernel applies: bfloat16 self-attention of whole sequences (S_kv = S > 1), not decoding
    against a KV cache."""
    S = q_BHSA.shape[2]
    whole = k_BGSA.shape[2] == S > 1 and (mask is None or mask.shape[1:] == (1, S, S))
    return whole and kernels.products_pay() and kernels.usable(q_BHSA, k_BGSA)


def _kernel_groups_heads(q_BHSA: Tensor, mask: Tensor | None) -> bool:
    """Whether PyTorch's fused kernels take fewer key/value heads than query heads (`enable_gqa`).

    On a CPU it does, and saves the copies: 1.1 to 1.2 times as fast, 1.8 times for one token against a cache. On a
    GPU only FlashAttention does, which has neither masks nor float32; anything else would fall back to the
    unfused path.
    """
    if q_BHSA.device.type == "cpu":
        return True
    return mask is None and q_BHSA.dtype in (torch.float16, torch.bfloat16)


def _repeat_heads(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with one head per query head, (B, H, S_kv, A) each."""
    repeats = q_BHSA.shape[1] // k_BGSA.shape[1]
    if repeats == 1:
        return k_BGSA, v_BGSA
    return k_BGSA.repeat_interleave(repeats, dim=1), v_BGSA.repeat_interleave(repeats, dim=1)


def attend_by_products(q_BHSA: Tensor, k_BHSA: Tensor, v_BHSA: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` as two batched matrix products and a softmax, for as many key/value heads as query heads."""
    B, H, S, A = q_BHSA.shape
    if mask is None:
        S_kv = k_BHSA.shape[2]
        mask = torch.ones(S, S_kv, dtype=torch.bool).tril(S_kv - S)[None, None]  # the queries are the last positions
    bias = torch.zeros(mask.shape, dtype=q_BHSA.dtype).masked_fill_(~mask, torch.finfo(q_BHSA.dtype).min)
    bias = bias.expand(B, H, S, -1).reshape(B * H, S, -1) if mask.shape[0] > 1 else bias[0].expand(B * H, -1, -1)
    scores = torch.baddbmm(bias, q_BHSA.reshape(B * H, S, A), k_BHSA.reshape(B * H, -1, A).mT, alpha=A**-0.5)
    return torch.bmm(scores.softmax(dim=-1), v_BHSA.reshape(B * H, -1, A)).view(B, H, S, A)


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
