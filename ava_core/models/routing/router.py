"""The interface of all routers, and what they have in common. Shapes: see `shapes`.

A router is a class with `select`; everything around it (probabilities, weights, capacity, record and replay,
auxiliary losses, statistics) is the same for all of them and lives in `Router.forward`. To add one, see
`ava_core.config.routing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ava_core.losses.routing import balance_loss, router_diversity_loss, router_z_loss
from ava_core.models.auxiliary import AuxiliaryGradient, AuxiliaryWeights, add_auxiliary_gradient, weighted_sum
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.capacity import expert_capacities, within_capacity
from ava_core.models.routing.routes import Routes, RouteTape
from ava_core.models.routing.statistics import RoutingStatistics, count_choices, mean_entropy


@dataclass(slots=True, kw_only=True)
class Routing:
    """What a router decided for T tokens.

    Attributes:
        expert_ids_TK: int64, distinct within a token.
        weights_TK: float32 gate values, 0 in unused and in dropped slots.
        used_TK: bool, True where the slot holds an expert that is evaluated.
        logits_TE: log-probabilities of the experts up to a constant per token; the gate's own logits, except for
            the hierarchical router, whose gate is wider.
        balance_loss, z_loss: scalars, not weighted.
        diversity_loss: scalar, not weighted; None unless it has a weight.
        statistics: of this layer, detached.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    used_TK: Tensor
    logits_TE: Tensor
    balance_loss: Tensor
    z_loss: Tensor
    diversity_loss: Tensor | None = None
    statistics: RoutingStatistics


@dataclass(slots=True, kw_only=True)
class Scores:
    """What a router makes of the gate's logits.

    Attributes:
        logits_TE, probabilities_TE: of the experts; the probabilities are the softmax of the logits.
        log_sum_T: logsumexp of `logits_TE`.
        gate_log_sums: logsumexp of what the z-loss keeps small: (T,), or (T, gates) with several gates.
    """

    logits_TE: Tensor
    probabilities_TE: Tensor
    log_sum_T: Tensor
    gate_log_sums: Tensor


class Router(nn.Module):
    """Base of all routers: float32 softmax, selection, weights, capacity, losses, statistics.

    `forward` ignores tokens whose `token_mask_T` is False (padding) in losses and statistics and lets them take no
    slot of an expert's capacity. It changes no state: everything is in what it returns, or on the caller's tape.
    """

    exported_as: ClassVar[str | None] = None
    """Name of the router whose nodes in the ONNX graphs do what this one does in evaluation; None: it has no export.
    Each class says it for itself: a subclass that chooses differently must not be exported as its base."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.exported_as = vars(cls).get("exported_as")

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        self.loss_weights = AuxiliaryWeights(config)
        self.num_layers = config.num_layers
        self.num_experts = config.num_experts
        self.num_ffn_experts = config.num_ffn_experts
        self.k = config.max_slots
        self.normalize = config.normalize_router_weights
        self.capacity_factor = config.capacity_factor
        self.tau = config.tau

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return expert ids (T, K), int64, and which slots are chosen (T, K), None meaning all of them.

        Called without gradients; `token_mask_T` matters only to a router that looks at the whole batch.
        """
        raise NotImplementedError

    def score(self, logits: Tensor) -> Scores:
        """Probabilities of the experts from the gate's logits (T, E)."""
        log_sum_T = logits.logsumexp(dim=-1)
        return Scores(
            logits_TE=logits,
            probabilities_TE=logits.softmax(dim=-1),
            log_sum_T=log_sum_T,
            gate_log_sums=log_sum_T,
        )

    def forward(
        self,
        logits: Tensor,
        token_mask_T: Tensor | None = None,
        tape: RouteTape | None = None,
        gradient: AuxiliaryGradient | None = None,
    ) -> Routing:
        """Route T tokens.

        Args:
            logits: (T, num_logits) of the gate; `EnhancedMoEConfig.num_logits` is E for most routers.
            token_mask_T: bool, False for padding.
            tape: recorded into when empty, replayed when filled.
            gradient: what the losses, weighted as the configuration says, add to the gate values' backward pass.

        Raises:
            ValueError: the tape holds routes of another number of tokens.
        """
        scores = self.score(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        routes = self._routes(scores, token_mask_T, tape)
        weights_TK = self._weights(scores.probabilities_TE, routes)
        tokens = logits.shape[0] if token_mask_T is None else token_mask_T.sum().clamp_min(1)
        chosen_E, kept_E = count_choices(routes, token_mask_T, self.num_experts)
        load_E = chosen_E / tokens
        if token_mask_T is None:
            mean_probability_E = scores.probabilities_TE.mean(dim=0)
        else:
            mean_probability_E = (scores.probabilities_TE * token_mask_T[:, None]).sum(dim=0) / tokens
        losses = {
            "balance_loss": balance_loss(load_E, mean_probability_E, self.num_ffn_experts, self.tau),
            "router_z_loss": router_z_loss(scores.gate_log_sums, token_mask_T),
        }
        if self.loss_weights["router_diversity"] > 0:
            losses["router_diversity"] = self._diversity(scores, mean_probability_E, token_mask_T)
        if gradient is not None and gradient.added:  # the model's loss has the mean over layers
            loss = weighted_sum(self.loss_weights, losses) / self.num_layers
            weights_TK = add_auxiliary_gradient(weights_TK, loss, gradient)
        return Routing(
            expert_ids_TK=routes.expert_ids_TK,
            weights_TK=weights_TK,
            used_TK=routes.used_TK,
            logits_TE=scores.logits_TE,
            balance_loss=losses["balance_loss"],
            z_loss=losses["router_z_loss"],
            diversity_loss=losses.get("router_diversity"),
            statistics=RoutingStatistics.measure(
                load_E=load_E,
                kept_E=kept_E / tokens,
                mean_probability_E=mean_probability_E,
                entropy=mean_entropy(scores.logits_TE, scores.probabilities_TE, scores.log_sum_T, token_mask_T),
                num_ffn_experts=self.num_ffn_experts,
            ),
        )

    def _diversity(self, scores: Scores, mean_probability_E: Tensor, token_mask_T: Tensor | None) -> Tensor:
        return router_diversity_loss(
            scores.logits_TE, scores.probabilities_TE, scores.log_sum_T, mean_probability_E, token_mask_T
        )

    @torch.no_grad()
    def _routes(self, scores: Scores, token_mask_T: Tensor | None, tape: RouteTape | None) -> Routes:
        """What the tape holds, or a new selection after capacity dropping, which is recorded on the tape."""
        if tape is not None and tape.routes is not None:
            recorded, tokens = tape.routes.expert_ids_TK.shape[0], scores.logits_TE.shape[0]
            if recorded != tokens:
                raise ValueError(f"routes.expert_ids_TK = {recorded} tokens: must be as many as are routed, {tokens}")
            return tape.routes
        ids_TK, selected_TK = self.select(scores, token_mask_T)
        if selected_TK is None:
            selected_TK = torch.ones_like(ids_TK, dtype=torch.bool)
        routes = Routes(expert_ids_TK=ids_TK, used_TK=selected_TK, selected_TK=selected_TK)
        if self.capacity_factor is not None and self.training:
            counted_TK = selected_TK if token_mask_T is None else selected_TK & token_mask_T[:, None]
            capacity_E = expert_capacities(
                counted_TK.sum(), self.capacity_factor, self.tau, self.num_ffn_experts, self.num_experts
            )
            routes.used_TK = selected_TK & within_capacity(ids_TK, counted_TK, capacity_E)
        if tape is not None:
            tape.routes = routes
        return routes

    def _weights(self, probabilities_TE: Tensor, routes: Routes) -> Tensor:
        """Gate values (T, K): a dropped expert's weight is lost, not given to the others of its token."""
        weights_TK = probabilities_TE.gather(1, routes.expert_ids_TK) * routes.selected_TK
        if self.normalize:
            # A token may have no expert (expert choice), or only such whose probability rounds to 0.
            total_T1 = weights_TK.sum(dim=-1, keepdim=True)
            weights_TK = weights_TK / total_T1.clamp_min(torch.finfo(total_T1.dtype).tiny)
        if routes.used_TK is not routes.selected_TK:
            weights_TK = weights_TK * routes.used_TK
        return weights_TK
