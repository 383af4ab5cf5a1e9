"""Parameters that stay as they are (`train.freeze`), and rates by layer and by pattern, of the model as it is built."""

from __future__ import annotations

import logging

from torch import nn
from torch.optim import Optimizer

from ava_core.config.patterns import frozen_names, require_meaning
from ava_core.config.train import TrainConfig

log = logging.getLogger(__name__)


def freeze(model: nn.Module, config: TrainConfig) -> None:
    """Take the parameters that `train.freeze` means out of the training: no gradient, no state, no master.

    To be called before memory is planned and the optimiser is made.

    Raises:
        ConfigError: a pattern of `freeze` or `learning_rate_groups` means no parameter, or all are frozen.
    """
    parameters = dict(model.named_parameters())
    frozen = frozen_names(parameters, config.freeze)
    require_meaning("learning_rate_groups", (group.pattern for group in config.learning_rate_groups), parameters)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen:
        entries = [sum(parameters[name].numel() for name in names) for names in (frozen, parameters)]
        log.info("train: %s of %s parameters are frozen (%s)", *(f"{n:,}" for n in entries), ", ".join(config.freeze))


def tell_rates(optimizer: Optimizer, config: TrainConfig) -> None:
    """Log the peak rate of each of the optimiser's groups, where layers or patterns have rates of their own."""
    if config.learning_rate_decay_by_layer == 1.0 and not config.learning_rate_groups:
        return
    rates: dict[float, int] = {}
    for group in optimizer.param_groups:
        rates[group["lr"]] = rates.get(group["lr"], 0) + sum(parameter.numel() for parameter in group["params"])
    told = ", ".join(f"{rate:.3g} ({entries:,})" for rate, entries in sorted(rates.items(), reverse=True))
    log.info("train: peak learning rates (of so many parameters): %s", told)


def frozen_state(model: nn.Module) -> set[str]:
    """Names of the frozen parameters as the model's state has them, tied ones by each of their names."""
    return {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
