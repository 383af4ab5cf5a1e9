"""What the models return. Shapes: see `shapes`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ava_core.models.auxiliary import AUXILIARY_LOSSES
from ava_core.models.routing import Routes, RoutingStatistics


@dataclass
class EnhancedMoEModelOutput(ModelOutput):
    """Attributes:
    last_hidden_state: (B, S, D), after the final norm.
    past_key_values: the KV cache, if one is used.
    hidden_states: (B, S, D) before each layer and after the last norm, with `output_hidden_states`.
    balance_loss, router_z_loss, router_diversity: means over layers of each layer's own loss, scalars, not weighted;
        the last is None unless it has a weight.
    router_logits, router_choices: per layer, (T, E) float32 and bool (True: chosen and not dropped), with
        `output_router_logits`. In training the logits carry a gradient only where `balance_loss_weight` is 0: a trainer
        that makes a balance loss of them would count it twice.
    router_statistics: per layer `RoutingStatistics`, detached.
    routes: per layer `Routes`, with `output_routes`; to be replayed with `routes=`.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    balance_loss: torch.Tensor | None = None
    router_z_loss: torch.Tensor | None = None
    router_diversity: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_choices: tuple[torch.Tensor, ...] | None = None
    router_statistics: tuple[RoutingStatistics, ...] | None = None
    routes: tuple[Routes, ...] | None = None


def auxiliary_losses(outputs: EnhancedMoEModelOutput) -> dict[str, torch.Tensor]:
    """The parts of a loss that the routers computed, by name; unweighted scalars."""
    parts = {name: getattr(outputs, name) for name in AUXILIARY_LOSSES}
    return {name: part for name, part in parts.items() if part is not None}


@dataclass
class EnhancedMoECausalLMOutput(ModelOutput):
    """Attributes:
    loss: scalar, with labels: the weighted sum of `loss_parts`, which is `main_loss` + `aux_loss`.
    logits: (B, S or logits_to_keep, V); None if `return_logits=False`.
    loss_parts: each part of the loss by name, unweighted, detached, with labels.
    aux_loss: the weighted sum of the parts that the routers computed, scalar.
    main_loss: the weighted sum of the parts computed from predictions (cross-entropy etc.), scalar, with labels.
    Others as in `EnhancedMoEModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None
    loss_parts: dict[str, torch.Tensor] | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_choices: tuple[torch.Tensor, ...] | None = None
    router_statistics: tuple[RoutingStatistics, ...] | None = None
    routes: tuple[Routes, ...] | None = None
    main_loss: torch.Tensor | None = None


@dataclass
class EnhancedMoESequenceClassifierOutput(ModelOutput):
    """Attributes:
    loss: scalar, with labels; `aux_loss` is part of it.
    logits: (B, num_labels), the scores of each sequence.
    aux_loss: the weighted sum of the parts that the routers computed, scalar.
    Others as in `EnhancedMoEModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_choices: tuple[torch.Tensor, ...] | None = None
    router_statistics: tuple[RoutingStatistics, ...] | None = None
