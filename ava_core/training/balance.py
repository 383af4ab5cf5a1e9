"""What training does about the balance of experts between steps: the bias of `expert_bias`, and a look for collapse."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ava_core.models import RoutingStatistics
from ava_core.models.routing import has_collapsed, update_expert_bias

log = logging.getLogger(__name__)
PATIENCE = 20
"""Steps in a row for which a layer must have been collapsed before it is warned of: routers that begin to learn fall in
and out of it from step to step."""


class BalanceMonitor:
    """Gathers the loads of all layers over the micro-batches of an optimiser step, and acts on their mean."""

    def __init__(self) -> None:
        self._loads: list[Tensor] = []
        self._steps: list[int] = []
        self._warned: list[int] = []

    def add(self, layers: Sequence[RoutingStatistics]) -> None:
        """Take in one micro-batch."""
        self._loads.append(torch.stack([layer.load_E for layer in layers]))

    def finish_step(self, model: nn.Module) -> dict[str, float]:
        """After the optimiser's step: update expert biases, warn of layers that stay collapsed.

        Returns:
            collapsed_layers: how many there are now.
        """
        load_LE = torch.stack(self._loads).mean(dim=0)
        self._loads = []
        update_expert_bias(model, load_LE.unbind())
        collapsed = has_collapsed(load_LE).tolist()
        before = self._steps or [0] * len(collapsed)
        self._steps = [steps + 1 if now else 0 for steps, now in zip(before, collapsed, strict=True)]
        self._warn([layer for layer, steps in enumerate(self._steps) if steps >= PATIENCE])
        return {"collapsed_layers": float(sum(collapsed))}

    def _warn(self, layers: list[int]) -> None:
        if layers == self._warned:
            return
        self._warned = layers
        if layers:
            names = ", ".join(map(str, layers))
            log.warning("routing has collapsed in layers %s (from 0): most tokens go to the same few experts", names)
        else:
            log.info("routing is collapsed in no layer any more")
