"""Routers: from logits to the experts of each token. Shapes: see `shapes`.

A router is a class with `select`; everything around it (probabilities, weights, capacity, auxiliary losses,
statistics) is the same for all of them and lives in `Router.forward`. To add one, subclass `Router`, register
it under its name in `ROUTERS`, and allow the name in the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ava_core.losses.routing import balance_loss, router_z_loss
from ava_core.models.capacity import expert_capacities, within_capacity
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.statistics import RoutingStatistics


@dataclass(slots=True, kw_only=True)
class Routing:
    """What a router decided for T tokens.

    Attributes:
        expert_ids_TK: int64, distinct within a token.
        weights_TK: float32 gate values, 0 in unused and in dropped slots.
        used_TK: bool, True where the slot holds an expert that is evaluated.
        balance_loss, z_loss: scalars, not weighted.
        statistics: of this layer, detached.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    used_TK: Tensor
    balance_loss: Tensor
    z_loss: Tensor
    statistics: RoutingStatistics


class Router(nn.Module):
    """Base of all routers: float32 softmax, selection, weights, capacity, losses, statistics.

    `forward(logits_TE, token_mask_T)` ignores tokens whose mask is False (padding) in losses and statistics
    and lets them take no place in an expert's capacity.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.num_ffn_experts = config.num_ffn_experts
        self.normalize = config.normalize_router_weights
        self.capacity_factor = config.capacity_factor
        self.tau = config.tau

    def select(self, logits_TE: Tensor, probabilities_TE: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return expert ids (T, K) and which slots are used (T, K), None meaning all of them."""
        raise NotImplementedError

    def forward(self, logits_TE: Tensor, token_mask_T: Tensor | None = None) -> Routing:
        logits_TE = logits_TE.float()
        probabilities_TE = logits_TE.softmax(dim=-1)
        ids_TK, selected_TK = self.select(logits_TE, probabilities_TE)
        weights_TK = probabilities_TE.gather(1, ids_TK)
        if selected_TK is None:
            selected_TK = torch.ones_like(ids_TK, dtype=torch.bool)
        else:
            weights_TK = weights_TK * selected_TK
        if self.normalize:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)

        counted_TK = selected_TK if token_mask_T is None else selected_TK & token_mask_T[:, None]
        used_TK = selected_TK
        if self.capacity_factor is not None and self.training:
            capacity_E = expert_capacities(
                counted_TK.sum(), self.capacity_factor, self.tau, self.num_ffn_experts, self.num_experts
            )
            kept_TK = within_capacity(ids_TK, counted_TK, capacity_E)
            used_TK = selected_TK & kept_TK
            weights_TK = weights_TK * used_TK

        load_E, mean_probability_E = _load(ids_TK, counted_TK, probabilities_TE, token_mask_T)
        statistics = RoutingStatistics.measure(
            load_E=load_E,
            mean_probability_E=mean_probability_E,
            probabilities_TE=probabilities_TE,
            ids_TK=ids_TK,
            counted_TK=counted_TK,
            used_TK=used_TK,
            token_mask_T=token_mask_T,
            num_ffn_experts=self.num_ffn_experts,
        )
        return Routing(
            expert_ids_TK=ids_TK,
            weights_TK=weights_TK,
            used_TK=used_TK,
            balance_loss=balance_loss(load_E, mean_probability_E, self.num_ffn_experts, self.tau),
            z_loss=router_z_loss(logits_TE, token_mask_T),
            statistics=statistics,
        )


class TopKRouter(Router):
    """The K most probable experts of each token (arXiv 1701.06538, eq. 3 to 5)."""

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.k = config.num_experts_per_token

    def select(self, logits_TE: Tensor, probabilities_TE: Tensor) -> tuple[Tensor, None]:
        return logits_TE.topk(self.k, dim=-1).indices, None


class ConfidenceRouter(Router):
    """The most probable experts until their probability sums to a threshold (arXiv 2403.07652, eq. 4).

    The first expert is always taken; the sum is over at most `max_experts_per_token` of them. A threshold of 1
    takes as many as the bound allows.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.k = config.max_experts_per_token or config.num_experts
        self.threshold = config.confidence_threshold

    def select(self, logits_TE: Tensor, probabilities_TE: Tensor) -> tuple[Tensor, Tensor | None]:
        top_TK, ids_TK = probabilities_TE.topk(self.k, dim=-1)
        if self.threshold >= 1:
            return ids_TK, None  # a rounded sum may reach 1 before the last expert
        before_TK = top_TK.detach().cumsum(dim=-1) - top_TK.detach()
        before_TK[:, 0] = 0  # the subtraction may leave rounding noise above a tiny threshold
        return ids_TK, before_TK < self.threshold


ROUTERS: dict[str, type[Router]] = {"top_k": TopKRouter, "confidence": ConfidenceRouter}


def build_router(config: EnhancedMoEConfig) -> Router:
    """The router that `config.router` names."""
    return ROUTERS[config.router](config)


def _load(
    ids_TK: Tensor, counted_TK: Tensor, probabilities_TE: Tensor, token_mask_T: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Share of tokens that chose each expert, and each expert's mean probability, both (E,), float32."""
    E = probabilities_TE.shape[1]
    count_E = torch.zeros(E, device=ids_TK.device).scatter_add_(0, ids_TK.reshape(-1), counted_TK.reshape(-1).float())
    if token_mask_T is None:
        return count_E / ids_TK.shape[0], probabilities_TE.mean(dim=0)
    tokens = token_mask_T.sum().clamp_min(1)
    return count_E / tokens, (probabilities_TE * token_mask_T[:, None]).sum(dim=0) / tokens
