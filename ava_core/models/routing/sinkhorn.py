"""A balanced assignment of the batch by entropic optimal transport. Shapes: see `shapes`.

It chooses with knowledge of later tokens, which generation can't have: in evaluation it is plain top-k, so that a
token's experts depend on its own logits alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.capacity import expert_shares
from ava_core.models.routing.router import Scores
from ava_core.models.routing.top_k import TopKRouter

TEMPERATURE = 0.5
"""Temperature of the Sinkhorn plan, in units of `preference_spread` of the logits. Chosen among 1, 0.5, 0.25 and 0.1:
its loads were nearest to the wanted ones after 8 iterations, over logits of standard deviation 0.3 to 4, tau 0.5 and 1,
and 1 to 4 experts per token of 12."""
PADDING = -1e30
"""Log-mass of a padding token: finite, so that a batch of nothing but padding makes no NaN."""


def sinkhorn_potentials(
    logits_TE: Tensor, shares_E: Tensor, iterations: int, token_mask_T: Tensor | None = None
) -> Tensor:
    """What to add to each expert's logits, (E,), so that the softmax over experts has the wanted marginals.

    The plan exp(logits_TE + u_T + v_E) of entropic optimal transport (arXiv 1306.0895, algorithm 1; for routing
    arXiv 2202.01169, section 3) has rows that sum to 1 and columns that sum to `shares_E` times the number of tokens.
    Columns and rows are normalised in turn, in log space: finite for any finite logits. Rows are normalised last, so
    the columns are right up to convergence. Returns v; u changes no token's order of experts.
    """
    tokens = logits_TE.shape[0] if token_mask_T is None else token_mask_T.sum().clamp_min(1)
    target_E = (shares_E * tokens).log().to(logits_TE.dtype)
    u_T = -logits_TE.logsumexp(dim=1)
    for _ in range(iterations):
        if token_mask_T is not None:
            u_T = torch.where(token_mask_T, u_T, PADDING)
        v_E = target_E - (logits_TE + u_T[:, None]).logsumexp(dim=0)
        u_T = -(logits_TE + v_E).logsumexp(dim=1)
    return v_E


def preference_spread(logits_TE: Tensor, token_mask_T: Tensor | None = None) -> Tensor:
    """Standard deviation, scalar, of the doubly centred logits: without each token's and each expert's mean."""
    if token_mask_T is None:
        mean_E = logits_TE.mean(dim=0)
    else:
        tokens = token_mask_T.sum().clamp_min(1)
        mean_E = (logits_TE * token_mask_T[:, None]).sum(dim=0) / tokens
    rest_TE = logits_TE - mean_E
    square_T = (rest_TE - rest_TE.mean(dim=1, keepdim=True)).square().mean(dim=1)
    return (square_T.mean() if token_mask_T is None else (square_T * token_mask_T).sum() / tokens).sqrt()


class SinkhornRouter(TopKRouter):
    """The K largest entries of each token's row of a balanced assignment (arXiv 2202.01169, section 3).

    Only the selection uses the plan; gate values are the softmax probabilities, so gradients are those of top-k.
    The wanted share of an expert is weighted by tau as its capacity is. The plan's temperature is `TEMPERATURE` times
    the spread of the tokens' preferences: with a fixed one, small logits give a plan that is balanced only as a
    mixture, whose largest entries are all of the same experts. In evaluation: plain top-k.
    """

    exported_as = "top_k"

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__(config)
        self.iterations = config.sinkhorn_iterations

    def select(self, scores: Scores, token_mask_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return super().select(scores, token_mask_T)
        logits_TE = scores.logits_TE
        shares_E = expert_shares(self.tau, self.num_ffn_experts, self.num_experts, logits_TE.device)
        spread = preference_spread(logits_TE, token_mask_T)
        sharp_TE = logits_TE / (TEMPERATURE * spread).clamp_min(1e-6)
        v_E = sinkhorn_potentials(sharp_TE, shares_E, self.iterations, token_mask_T)
        return (sharp_TE + v_E).topk(self.k, dim=-1).indices, None
