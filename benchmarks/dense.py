"""The dense model built from our own parts: one feed-forward network instead of the mixture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.models import EnhancedMoEConfig
from ava_core.models.experts import SharedExperts


class DenseFFN(nn.Module):
    """One SwiGLU network with the arguments and return values of `MoELayer`, and no routing work.

    What the decoder wants to know about routing is taken from the mixture that it replaces, once per number of
    tokens, and returned again and again; its losses are constants without a gradient.

    Args:
        config: of the model.
        width: of the network's hidden layer.
        mixture: the `MoELayer` that is replaced; not kept as a submodule.
    """

    def __init__(self, config: EnhancedMoEConfig, width: int, mixture: nn.Module):
        super().__init__()
        config = copy.copy(config)
        config.num_shared_experts, config.expert_intermediate_size = 1, width
        self.ffn = SharedExperts(config)
        for parameter in self.ffn.parameters():
            nn.init.normal_(parameter, std=config.initializer_range)
        self._mixture = [mixture.get_submodule("router")]  # in a list, so that the router is no part of this module
        self._num_experts = config.num_experts
        self._routings: dict[int, Any] = {}

    def forward(self, x_BSD: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Any]:
        """Return the output (B, S, D), router logits of zero (T, E), and a routing that nothing follows."""
        tokens = x_BSD.shape[0] * x_BSD.shape[1]
        if tokens not in self._routings:
            with torch.no_grad():
                logits_TE = torch.zeros(tokens, self._num_experts, device=x_BSD.device)
                self._routings[tokens] = logits_TE, self._mixture[0](logits_TE)
        logits_TE, routing = self._routings[tokens]
        return self.ffn(x_BSD), logits_TE, routing


def make_dense(model: nn.Module, config: EnhancedMoEConfig, width: int) -> None:
    """Put a `DenseFFN` in place of every mixture of `model`, in place."""
    for layer in model.get_submodule("model.layers").children():
        layer.moe = DenseFFN(config, width, layer.get_submodule("moe"))
