"""From the configuration to an optimiser over a model's parameters."""

from __future__ import annotations

from importlib import import_module

from torch import nn
from torch.optim import Optimizer

from ava_core.config.train import TrainConfig
from ava_core.training.optimizers.masters import MasteredOptimizer, OnMasters
from ava_core.training.optimizers.parameters import parameter_groups


def build_optimizer(model: nn.Module, config: TrainConfig, *, masters: bool = True) -> Optimizer:
    """Optimiser over the trainable parameters of `model`, with the rates and decays of `config`.

    What it is comes from `build` in the module of this folder that has the optimiser's name.

    Args:
        masters: keep float32 masters of weights in half precision. Under ZeRO 1, 2 and 3 DeepSpeed keeps them; then
            Lion and Adafactor aren't wrapped, and the others find float32 weights, which need none.
    """
    module = import_module(f"ava_core.training.optimizers.{config.optimizer}")
    optimizer = module.build(parameter_groups(model, config), config)
    return OnMasters(optimizer) if masters and not isinstance(optimizer, MasteredOptimizer) else optimizer
