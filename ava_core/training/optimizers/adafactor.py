"""Adafactor (arXiv 1804.04235), as PyTorch has it: its rate is relative to the root mean square of the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from ava_core.config.train import TrainConfig


def build(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    """Adafactor over `groups`, with the paper's constants."""
    return torch.optim.Adafactor(groups, lr=config.learning_rate)
