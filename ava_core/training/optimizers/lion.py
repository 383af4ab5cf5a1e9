"""Lion (arXiv 2302.06675), as pytorch-optimizer has it, with the paper's constants."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from ava_core.config.train import TrainConfig


def build(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    """Lion over `groups`."""
    # Importing the library takes as long as importing torch does.
    from pytorch_optimizer.optimizer.lion import Lion

    return Lion(groups, lr=config.learning_rate)
