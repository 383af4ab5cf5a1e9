"""Experts that choose tokens, while training. Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.capacity import expert_capacities
from ava_core.models.routing.router import Scores
from ava_core.models.routing.top_k import TopKRouter


class ExpertChoiceRouter(TopKRouter):
    """Each expert chooses the tokens that want it most (arXiv 2202.09368, section 3.2): balanced by construction.

    While training only: the selection looks at later tokens, which generation doesn't have. Expert e takes the C_e
    tokens with the largest probability of e, C_e being the capacity of MoE++'s eq. 8 for T * K assignments (gamma = 1
    unless configured), so that K experts per token is the average; a token may get none, or all E: it has E slots.
    Padding takes no slot. Nothing is dropped beyond that. In evaluation: plain top-k.
    """

    exported_as = "top_k"

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.gamma = config.capacity_factor or 1.0
        self.capacity_factor = None

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return super().select(scores, token_mask_T)
        probabilities_TE = scores.probabilities_TE
        T, E = probabilities_TE.shape
        ids_TE = torch.arange(E, device=probabilities_TE.device).expand(T, E).contiguous()
        assignments: int | Tensor = T * self.k
        if token_mask_T is not None:
            assignments = token_mask_T.sum() * self.k
            probabilities_TE = torch.where(token_mask_T[:, None], probabilities_TE, -1.0)
        capacity_E = expert_capacities(assignments, self.gamma, self.tau, self.num_ffn_experts, E)
        order_TE = probabilities_TE.argsort(dim=0, descending=True, stable=True)
        first_TE = torch.arange(T, device=order_TE.device)[:, None] < capacity_E.to(order_TE.device)
        chosen_TE = torch.zeros_like(first_TE).scatter_(0, order_TE, first_TE)
        return ids_TE, chosen_TE if token_mask_T is None else chosen_TE & token_mask_T[:, None]
