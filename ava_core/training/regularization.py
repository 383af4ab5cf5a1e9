"""Regularisation that follows the gap between validation and training loss."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ava_core.config.model import ModelConfig
from ava_core.config.train import TrainConfig
from ava_core.models.modeling import DecoderLayer
from ava_core.models.moe import Gate


class AdaptiveRegularizer:
    """Drives dropout, weight decay and router noise with one strength s in [0, 1], which begins at 0.

    After each evaluation, with gap = validation loss - training loss and t = target_gap,

        s <- clip(s + rate (gap - t) / (|gap| + t), 0, 1),

    a step of at most `rate`: none at the target, a third of it at twice the target, all of it downwards where there is
    no gap. A loss that isn't finite changes nothing. Each value is base + s (maximum - base), where base is what
    the configuration says without this. (The training loss is measured under the dropout itself, which raises it: the
    gap shrinks a little with s, so s settles below what a gap measured without dropout would ask for.)

    Weight decay is driven in the groups that have some when this is built, in proportion to what they have: with
    train.weight_decay = 0 there is none, and it stays 0. The model's configuration isn't touched: a saved model has
    its own dropout and jitter. Where `config.regularization.adaptive` is false nothing is set and no figure is given.

    Args:
        model: in it, dropout and routers of all decoder layers are driven.
        optimizer: has `param_groups`; its decay as configured.
        config: the section `train`.
        model_config: the section `model`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, config: TrainConfig, model_config: ModelConfig) -> None:
        self.strength = 0.0
        self._config = config.regularization
        self._bounds = {
            "dropout": (model_config.dropout, self._config.max_dropout),
            "weight_decay": (config.weight_decay, self._config.max_weight_decay),
            "router_jitter": (model_config.router_jitter, self._config.max_router_jitter),
        }
        self._optimizer = optimizer
        # By number: loading an optimiser's state puts new groups in the place of the old ones.
        self._decays = {i: group["weight_decay"] for i, group in enumerate(optimizer.param_groups)}
        self._dropouts: list[nn.Dropout] = []
        self._gates: list[Gate] = []
        for layer in (module for module in model.modules() if isinstance(module, DecoderLayer)):
            self._dropouts += [module for module in layer.modules() if isinstance(module, nn.Dropout)]
            self._gates += [module for module in layer.modules() if isinstance(module, Gate)]

    def after_evaluation(self, validation_loss: float, train_loss: float) -> dict[str, float]:
        """Move the strength and set what follows from it.

        Args:
            validation_loss: nats per token.
            train_loss: mean over recent steps, nats per token. Both must be the same on every rank.

        Returns:
            regularization_strength, dropout, weight_decay and router_jitter from now on; nothing where it is off.
        """
        if not self._config.adaptive:
            return {}
        gap, target = validation_loss - train_loss, self._config.target_gap
        if math.isfinite(gap) and (scale := abs(gap) + target) > 0:
            self.strength += self._config.rate * (gap - target) / scale
            self.strength = min(1.0, max(0.0, self.strength))
        self._apply()
        return self.figures()

    def figures(self) -> dict[str, float]:
        """The strength and the values in force; empty where it is off."""
        if not self._config.adaptive:
            return {}
        values = {name: self._value(name) for name in self._bounds}
        return {"regularization_strength": self.strength, **values}

    def state_dict(self) -> dict[str, Any]:
        """The strength; empty where it is off."""
        return {"strength": self.strength} if self._config.adaptive else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a strength and set what follows from it; after the optimiser's state has been loaded."""
        if self._config.adaptive:
            self.strength = float(state.get("strength", 0.0))
            self._apply()

    def _value(self, name: str) -> float:
        base, maximum = self._bounds[name]
        if name == "weight_decay" and base == 0:
            return 0.0
        return base + self.strength * (maximum - base)

    def _apply(self) -> None:
        for dropout in self._dropouts:
            dropout.p = self._value("dropout")
        for gate in self._gates:
            gate.jitter = self._value("router_jitter")
        base = self._bounds["weight_decay"][0]
        for i, group in enumerate(self._optimizer.param_groups):
            if self._decays[i] > 0 and base > 0:
                group["weight_decay"] = self._decays[i] * (self._value("weight_decay") / base)
