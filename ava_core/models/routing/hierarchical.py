"""Two-level routing: groups of experts first, then experts inside them. Shapes: see `shapes`; here G
is groups, I the experts inside one, E = G * I."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.router import Scores
from ava_core.models.routing.top_k import TopKRouter


class HierarchicalRouter(TopKRouter):
    """A gate over G groups and one over the experts of each group; their product is the probability.

    arXiv 1701.06538, appendix B, with softmax gates. The E experts, zero-computation ones included, are cut into G
    groups of consecutive experts. A token takes its `num_groups_per_token` most probable groups, and in them the K
    experts with the largest product. The gate's logits are (T, G + E), groups first. A single group needs no gate of
    its own: then the logits are (T, E) and this is top-k, number for number.
    """

    exported_as = "hierarchical"

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.num_groups = config.num_expert_groups
        self.groups_per_token = config.num_groups_per_token

    def score(self, logits: Tensor) -> Scores:
        G = self.num_groups
        if G == 1:
            return super().score(logits)
        groups_TG, inside_TGI = logits[:, :G], logits[:, G:].unflatten(-1, (G, -1))
        group_sums_T, inside_sums_TG = groups_TG.logsumexp(dim=-1), inside_TGI.logsumexp(dim=-1)
        product_TGI = groups_TG.softmax(dim=-1)[..., None] * inside_TGI.softmax(dim=-1)
        log_group_TG = groups_TG - group_sums_T[:, None]
        log_product_TGI = log_group_TG[..., None] + (inside_TGI - inside_sums_TG[..., None])
        return Scores(
            logits_TE=log_product_TGI.flatten(1),
            probabilities_TE=product_TGI.flatten(1),
            log_sum_T=torch.zeros_like(group_sums_T),  # of log-probabilities
            gate_log_sums=torch.cat((group_sums_T[:, None], inside_sums_TG), dim=1),
        )

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        G = self.num_groups
        if self.groups_per_token == G:
            return super().select(scores, token_mask_T)
        log_product_TGI = scores.logits_TE.unflatten(-1, (G, -1))
        best_TG = log_product_TGI.logsumexp(dim=-1).topk(self.groups_per_token, dim=-1).indices
        closed_TG = torch.ones(best_TG.shape[0], G, dtype=torch.bool, device=best_TG.device).scatter_(1, best_TG, False)
        open_TGI = log_product_TGI.masked_fill(closed_TG[..., None], -torch.inf)
        return open_TGI.flatten(1).topk(self.k, dim=-1).indices, None
