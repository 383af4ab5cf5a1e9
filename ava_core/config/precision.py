"""The types that weights, activations and products may have, by their name in the configuration."""

from __future__ import annotations

from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]
TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Names of the attributes of torch."""
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of an entry."""
FLOAT32 = WIDTHS["fp32"]
"""Bytes of an entry of what is always exact: masters, the optimiser's state, logits, accumulated gradients."""
