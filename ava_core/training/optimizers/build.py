"""From the configuration to an optimiser over a model's parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from ava_core.config.training import TrainConfig
from ava_core.training.optimizers.adamw import AdamW
from ava_core.training.optimizers.masters import OnMasters
from ava_core.training.optimizers.muon import Muon
from ava_core.training.optimizers.parameters import parameter_groups
from ava_core.training.optimizers.sophia import Sophia

OPTIMIZERS = ("adamw", "muon", "lion", "adafactor", "sophia")


def build_optimizer(model: nn.Module, config: TrainConfig, *, masters: bool = True) -> Optimizer:
    """Optimiser over the trainable parameters of `model`, with the rates and decays of `config`.

    AdamW and Muon take `adam_beta1`, `adam_beta2` and `momentum` from the configuration. Lion and Sophia run with their
    papers' constants. Adafactor's rate is relative: PyTorch scales it by the root mean square of the weight.

    Args:
        masters: keep float32 masters of weights in half precision. Under ZeRO 1, 2 and 3 DeepSpeed keeps them; then
            Lion and Adafactor come as their libraries have them, and ours find float32 weights, which need none.
    """
    groups = parameter_groups(model, config)
    betas = (config.adam_beta1, config.adam_beta2)
    match config.optimizer:
        case "adamw":
            return AdamW(groups, lr=config.learning_rate, betas=betas)
        case "muon":
            interval = config.expert_update_interval
            return Muon(
                groups, lr=config.learning_rate, momentum=config.momentum, expert_interval=interval, betas=betas
            )
        case "sophia":
            return Sophia(groups, lr=config.learning_rate)
        case "lion":
            # Importing the library takes as long as importing torch does.
            from pytorch_optimizer.optimizer.lion import Lion

            inner: Optimizer = Lion(groups, lr=config.learning_rate)
        case "adafactor":
            inner = torch.optim.Adafactor(groups, lr=config.learning_rate)
    return OnMasters(inner) if masters else inner
