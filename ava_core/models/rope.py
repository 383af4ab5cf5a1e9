"""Rotary positions (RoPE, arXiv 2104.09864), and how they are scaled to longer contexts. Shapes: see `shapes`.

`config.rope_parameters` holds Transformers' names and the frequencies are Transformers' own. One thing differs: what
"dynamic" was trained with is `original_max_position_embeddings`, so that `max_position_embeddings` stays the longest
sequence that a model is meant for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.config.context import DYNAMIC, LINEAR, YARN
from ava_core.models.configuration import EnhancedMoEConfig


def frequencies(config: EnhancedMoEConfig, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Angle per position of each pair of a head's values, float32 (A/2,), and what cosines and sines are multiplied by.

    Of "dynamic" those within the original context; see `dynamic_frequencies`.
    """
    rope, A = config.rope_parameters, config.head_dim
    exponent = torch.arange(0, A, 2, device=device, dtype=torch.float32)
    plain = rope["rope_theta"] ** (-exponent / A)
    if rope["rope_type"] == LINEAR:
        return plain / rope["factor"], 1.0
    if rope["rope_type"] != YARN:
        return plain, 1.0
    factor = rope["factor"]
    low, high = _yarn_range(rope, A)
    # Eq. 19 to 23 of YaRN: a ramp over the pairs, from frequencies that stay to those that are divided.
    ramp = ((torch.arange(A // 2, device=device, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    sharpened = rope.get("attention_factor") or 0.1 * math.log(factor) + 1
    return plain * (1 - ramp) + plain / factor * ramp, float(sharpened)


def _yarn_range(rope: Mapping[str, Any], A: int) -> tuple[float, float]:
    """Pairs between which the ramp goes from 0 to 1."""

    def pair(turns: float) -> float:
        """Number of the pair that turns so often in the original context."""
        return A * math.log(rope["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(base))

    base = rope["rope_theta"]
    low, high = pair(rope.get("beta_fast") or 32), pair(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, A - 1)
    return low, high if high != low else high + 0.001


def dynamic_frequencies(config: EnhancedMoEConfig, length: Tensor) -> Tensor:
    """Frequencies of texts of so many tokens, float32 (..., A/2) for `length` (..., 1): NTK-aware, with a base that
    grows with what is beyond the original context."""
    rope, A = config.rope_parameters, config.head_dim
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    stretched = factor * length.float().clamp_min(original) / original - (factor - 1)
    base = rope["rope_theta"] * stretched ** (A / (A - 2))
    exponent = torch.arange(0, A, 2, device=length.device, dtype=torch.float32)
    return base ** (-exponent / A)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the positions' angles, in float32.

    The frequencies are computed on demand and not held as a buffer, so that loading on the meta device,
    casting the model to bfloat16 and ZeRO partitioning can't lose or round them.

    Those of "dynamic" follow from the last position of each row, whatever other rows or earlier calls there were. A key
    in a cache keeps the rotation that it got when its token was read, as in Transformers: past the original context,
    reading token by token isn't quite what reading at once is.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, position_ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each (B, 1, S, A)."""
        frequency, factor = frequencies(self.config, position_ids_BS.device)
        if self.config.rope_parameters["rope_type"] == DYNAMIC:
            frequency = dynamic_frequencies(self.config, position_ids_BS.amax(-1)[:, None, None] + 1)
        angle_BSA = position_ids_BS[..., None].float() * frequency
        angle_BSA = torch.cat((angle_BSA, angle_BSA), dim=-1)
        cosines, sines = angle_BSA.cos().unsqueeze(1), angle_BSA.sin().unsqueeze(1)
        return (cosines, sines) if factor == 1 else (cosines * factor, sines * factor)


def rotate(x_BHSA: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + A/2) of the last axis by the angles of `cos` and `sin` (the half-split layout of Llama)."""
    first, second = x_BHSA.chunk(2, dim=-1)
    return x_BHSA * cos + torch.cat((-second, first), dim=-1) * sin
