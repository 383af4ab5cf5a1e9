"""Top-p over experts: as many as a token needs to reach a threshold of probability. Shapes: see `shapes`."""

from __future__ import annotations

from torch import Tensor

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.router import Router, Scores


class ConfidenceRouter(Router):
    """The most probable experts until their probability sums to a threshold (arXiv 2403.07652, eq. 4).

    The first expert is always taken; the sum is over at most `max_experts_per_token` of them. A threshold of 1
    takes as many as the bound allows.
    """

    exported_as = "confidence"

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.threshold = config.confidence_threshold

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        top_TK, ids_TK = scores.probabilities_TE.topk(self.k, dim=-1)
        if self.threshold >= 1:
            return ids_TK, None  # a rounded sum may reach 1 before the last expert
        before_TK = top_TK.cumsum(dim=-1) - top_TK
        before_TK[:, 0] = 0  # the subtraction may leave rounding noise above a tiny threshold
        return ids_TK, before_TK < self.threshold
