"""AdamW with moments in 8 bits (arXiv 2110.02861), as bitsandbytes has it.

torchao's, which is the other one, keeps its state in a tensor class of its own, which the reader of checkpoints refuses
as it would any code, and compiles its update for every shape of parameter: 68 s for one on two cores.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from ava_core.config.optimizers import SMALL_ENTRIES
from ava_core.config.train import TrainConfig


def build(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    """AdamW over `groups`, with the betas of the configuration; small parameters have moments in float32."""
    from bitsandbytes.optim import AdamW8bit

    betas = (config.adam_beta1, config.adam_beta2)
    return AdamW8bit(groups, lr=config.learning_rate, betas=betas, min_8bit_size=SMALL_ENTRIES)
