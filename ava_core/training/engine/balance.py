"""Balance of experts between steps: the bias of the router `expert_bias`, and detection of routing collapse."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from ava_core.distributed.ranks import Ranks
from ava_core.models import RoutingStatistics
from ava_core.models.routing import has_collapsed, update_expert_bias

log = logging.getLogger(__name__)
PATIENCE = 20
"""Steps in a row for which a layer must have been collapsed before it is warned of: routers that begin to learn fall in
and out of it from step to step."""


class BalanceMonitor:
    """Gathers the loads of all layers over the micro-batches and ranks of an optimiser step, and acts on their mean."""

    def __init__(self) -> None:
        self._loads: list[Tensor] = []
        self._load_LE: Tensor | None = None
        self._steps: list[int] = []
        self._warned: list[int] = []

    def add(self, layers: Sequence[RoutingStatistics]) -> None:
        """Take in one micro-batch."""
        self._loads.append(torch.stack([layer.load_E for layer in layers]))

    def judge(self, ranks: Ranks | None = None) -> dict[str, float]:
        """After the last micro-batch: average the loads, over `ranks` too. Collective.

        Returns:
            collapsed_layers: how many there are in this batch.
        """
        load_LE = torch.stack(self._loads).mean(dim=0)
        self._loads = []
        if ranks is not None and ranks.size > 1:
            distributed.all_reduce(load_LE)  # gives all ranks the same bits, so their biases stay the same
            load_LE /= ranks.size
        self._load_LE = load_LE
        return {"collapsed_layers": float(has_collapsed(load_LE).sum())}

    def finish_step(self, model: nn.Module) -> None:
        """After the optimiser's step: update expert biases, warn of layers that stay collapsed."""
        assert self._load_LE is not None, "judge comes first"
        load_LE, self._load_LE = self._load_LE, None
        update_expert_bias(model, load_LE.unbind())
        collapsed = has_collapsed(load_LE).tolist()
        before = self._steps or [0] * len(collapsed)
        self._steps = [steps + 1 if now else 0 for steps, now in zip(before, collapsed, strict=True)]
        self._warn([layer for layer, steps in enumerate(self._steps) if steps >= PATIENCE])

    def discard(self) -> None:
        """Drop the loads of a batch that led to no update."""
        self._loads, self._load_LE = [], None

    def _warn(self, layers: list[int]) -> None:
        if layers == self._warned:
            return
        self._warned = layers
        if layers:
            names = ", ".join(map(str, layers))
            log.warning("routing has collapsed in layers %s (from 0): most tokens go to the same few experts", names)
        else:
            log.info("routing is collapsed in no layer any more")


def routing_figures(layers: Sequence[RoutingStatistics]) -> dict[str, Tensor]:
    """Figures of one pass for the history: means over layers, and the dead experts in all of them."""
    return {
        "ffn_experts_per_token": torch.stack([layer.ffn_experts_per_token for layer in layers]).mean(),
        "expert_load_cv": torch.stack([layer.load_cv for layer in layers]).mean(),
        "dead_experts": torch.stack([layer.dead_experts for layer in layers]).sum(),
    }
