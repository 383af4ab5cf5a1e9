"""Grouped-query causal attention with rotary positions and optional QK-norm. Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.normalization import RMSNorm


class RotaryEmbedding(nn.Module):
    """Cosines and sines of RoPE (arXiv 2104.09864), in float32.

    The frequencies are computed on demand and not held as a buffer, so that loading on the meta device,
    casting the model to bfloat16 and ZeRO partitioning can't lose or round them.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.theta = config.rope_parameters["rope_theta"]

    @torch.no_grad()
    def forward(self, position_ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each (B, 1, S, A)."""
        exponent = torch.arange(0, self.head_dim, 2, device=position_ids_BS.device, dtype=torch.float32)
        inverse_frequency = self.theta ** (-exponent / self.head_dim)
        angle_BSA = position_ids_BS[..., None].float() * inverse_frequency
        angle_BSA = torch.cat((angle_BSA, angle_BSA), dim=-1)
        return angle_BSA.cos().unsqueeze(1), angle_BSA.sin().unsqueeze(1)


def rotate(x_BHSA: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + A/2) of the last axis by the angles of `cos` and `sin`."""
    first, second = x_BHSA.chunk(2, dim=-1)
    return x_BHSA * cos + torch.cat((-second, first), dim=-1) * sin


def attend(q_BHSA: Tensor, k_BHSA: Tensor, v_BHSA: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention; `mask` is boolean (B or 1, 1, S, S_kv), True where a query may look, None is causal.

    On a CPU the backward of PyTorch's fused kernel is slow in bfloat16: forward and backward took 1.8 times as long as
    the explicit products below (`make bench`), so training uses those there.
    """
    explicit = q_BHSA.device.type == "cpu" and q_BHSA.dtype == torch.bfloat16 and q_BHSA.requires_grad
    if not explicit:
        # One query may look at the whole cache, which the causal flag (aligned upper-left) would forbid.
        causal = mask is None and q_BHSA.shape[2] > 1
        return F.scaled_dot_product_attention(q_BHSA, k_BHSA, v_BHSA, attn_mask=mask, is_causal=causal)
    B, H, S, A = q_BHSA.shape
    if mask is None:
        mask = torch.ones(S, k_BHSA.shape[2], dtype=torch.bool).tril()[None, None]
    bias = torch.zeros(mask.shape, dtype=q_BHSA.dtype).masked_fill_(~mask, torch.finfo(q_BHSA.dtype).min)
    bias = bias.expand(B, H, S, -1).reshape(B * H, S, -1) if mask.shape[0] > 1 else bias[0].expand(B * H, -1, -1)
    scores = torch.baddbmm(bias, q_BHSA.reshape(B * H, S, A), k_BHSA.reshape(B * H, -1, A).mT, alpha=A**-0.5)
    return torch.bmm(scores.softmax(dim=-1), v_BHSA.reshape(B * H, -1, A)).view(B, H, S, A)


class Attention(nn.Module):
    """Causal self-attention of one decoder layer."""

    def __init__(self, config: EnhancedMoEConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Return (B, S, D). `rotary` is cos and sin of the positions; `mask` as in `attend`."""
        B, S, _ = x_BSD.shape
        q = self.q_norm(self.q_proj(x_BSD).view(B, S, -1, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BSD).view(B, S, -1, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x_BSD).view(B, S, -1, self.head_dim).transpose(1, 2)
        # The angles are float32; the products with the values run in the values' own type.
        q, k = rotate(q, *rotary).to(v.dtype), rotate(k, *rotary).to(v.dtype)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        if (groups := self.num_heads // self.num_key_value_heads) > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out_BHSA = attend(q, k, v, mask)
        return self.o_proj(out_BHSA.transpose(1, 2).reshape(B, S, -1))
