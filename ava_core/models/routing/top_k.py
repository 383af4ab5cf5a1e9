"""A fixed number of experts for each token. Shapes: see `shapes`."""

from __future__ import annotations

from torch import Tensor

from ava_core.models.routing.router import Router, Scores


class TopKRouter(Router):
    """The K most probable experts of each token (arXiv 1701.06538, eq. 3 to 5)."""

    exported_as = "top_k"

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return scores.logits_TE.topk(self.k, dim=-1).indices, None
