"""Auxiliary-loss-free balancing: a bias per expert, in the selection only, raised when its load is low. Shapes: see
`shapes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed, nn

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.capacity import expert_shares
from ava_core.models.routing.router import Router, Scores
from ava_core.models.routing.statistics import RoutingStatistics


class ExpertBiasRouter(Router):
    """The K experts with the largest probability plus bias (arXiv 2408.15664, eq. 3; DeepSeek-V3, 2412.19437, eq. 16).

    The bias takes part in the selection only, never in the gate values, so it has no gradient. It is a buffer, saved
    with the weights and kept in float32 whatever the model's type: steps of 0.001 would be lost in bfloat16. Scores
    are softmax probabilities, as with the other routers (DeepSeek-V3 has sigmoids). A bias of 0 is plain top-k.

    `update_expert_bias` changes it after an optimiser step; under HF's Trainer `BiasSteps` calls it.
    """

    exported_as = "expert_bias"

    expert_bias: Tensor

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.update_rate = config.expert_bias_update_rate
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (scores.probabilities_TE + self.expert_bias).topk(self.k, dim=-1).indices, None

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """Raise the bias of experts with less than their share of the load, lower that of the others.

        b_e += update_rate * sign(wanted_e - load_e), arXiv 2408.15664, algorithm 1. The wanted load is the mean for a
        vanilla layer; with zero-computation experts it is weighted by tau, as the capacity is.
        """
        shares_E = expert_shares(self.tau, self.num_ffn_experts, self.num_experts, load_E.device).to(load_E.dtype)
        self.expert_bias += self.update_rate * torch.sign(shares_E * load_E.sum() - load_E)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExpertBiasRouter:
        """Move with the model, but don't follow it to another type."""
        exact_E = self.expert_bias
        super()._apply(fn, recurse)
        if self.expert_bias.dtype != torch.float32:
            self.expert_bias = exact_E.to(self.expert_bias.device)
        return self


class BiasSteps:
    """Updates the biases once per optimiser step of a trainer that doesn't know of them: HF's Trainer, its subclasses.

    Such a trainer calls `model.train()` before each micro-batch, which the model forwards to `begin`; loads come from
    its forward passes. A step's update happens when the next one begins, so the last step of a training has none.
    """

    def __init__(self) -> None:
        self._loads: list[Tensor] = []
        self._number: int | None = None
        self._counting = False

    @torch.no_grad()
    def begin(self, model: nn.Module, number: int | None) -> None:
        """A micro-batch begins; `number` counts optimiser steps, None means that no such trainer was found.

        With a new number it averages the step's loads over micro-batches and ranks, which is a collective (all-reduce),
        and updates the biases.
        """
        self._counting = number is not None
        if number is None or number == self._number:
            return
        if self._loads:
            load_LE = torch.stack(self._loads).mean(dim=0)
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(load_LE)
                load_LE /= distributed.get_world_size()
            update_expert_bias(model, load_LE.unbind())
        self._loads, self._number = [], number

    def add(self, layers: Sequence[RoutingStatistics]) -> None:
        """Record the loads of a forward pass in training."""
        if self._counting and not torch.compiler.is_compiling():
            self._loads.append(torch.stack([layer.load_E for layer in layers]))


@torch.no_grad()
def update_expert_bias(model: nn.Module, load_per_layer: Sequence[Tensor]) -> None:
    """Update the bias of every `ExpertBiasRouter` in `model`; does nothing for other routers.

    Call it once per optimiser step, after it, with the loads (E,) of the layers in their order: those of the whole
    batch, so averaged over micro-batches and ranks.

    Raises:
        ValueError: the number of loads isn't that of the routers.
    """
    routers = [module for module in model.modules() if isinstance(module, ExpertBiasRouter)]
    if not routers:
        return
    if len(load_per_layer) != len(routers):
        raise ValueError(f"load_per_layer = {len(load_per_layer)} loads: must be one per layer, {len(routers)}")
    for router, load_E in zip(routers, load_per_layer, strict=True):
        router.update(load_E)
