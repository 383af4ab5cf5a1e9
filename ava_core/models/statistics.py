"""What a layer's router did with a batch, measured cheaply and without gradients. Shapes: see `shapes`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DEAD_SHARE = 0.01
"""Of an even share of the assignments: an expert below it counts as dead."""


@dataclass(slots=True, kw_only=True)
class RoutingStatistics:
    """Detached figures of one layer, padding excluded.

    Attributes:
        load_E: share of tokens that chose each expert, before any dropping; sums to experts per token.
        mean_probability_E: each expert's mean router probability; sums to 1.
        ffn_experts_per_token: scalar; FFN experts evaluated for the average token.
        entropy: scalar, nats; mean entropy of the router's distribution of a token (log E is undecided).
        dropped_share: scalar; share of assignments dropped for capacity.
    """

    load_E: Tensor
    mean_probability_E: Tensor
    ffn_experts_per_token: Tensor
    entropy: Tensor
    dropped_share: Tensor

    @property
    def load_cv(self) -> Tensor:
        """Standard deviation of the loads (over the whole population) divided by their mean, scalar; 0 is even."""
        return self.load_E.std(correction=0) / self.load_E.mean()

    @property
    def dead_experts(self) -> Tensor:
        """Number of experts whose load is below `DEAD_SHARE` of an even share, scalar."""
        return (self.load_E < DEAD_SHARE * self.load_E.mean()).sum()

    @staticmethod
    @torch.no_grad()
    def measure(
        *,
        load_E: Tensor,
        mean_probability_E: Tensor,
        probabilities_TE: Tensor,
        ids_TK: Tensor,
        counted_TK: Tensor,
        used_TK: Tensor,
        token_mask_T: Tensor | None,
        num_ffn_experts: int,
    ) -> RoutingStatistics:
        entropy_T = torch.special.entr(probabilities_TE).sum(dim=-1)
        if token_mask_T is None:
            tokens, entropy = entropy_T.shape[0], entropy_T.mean()
        else:
            tokens = token_mask_T.sum().clamp_min(1)
            entropy = (entropy_T * token_mask_T).sum() / tokens
        dropped = (counted_TK & ~used_TK).sum() / counted_TK.sum().clamp_min(1)
        ffn = (counted_TK & used_TK & (ids_TK < num_ffn_experts)).sum() / tokens
        return RoutingStatistics(
            load_E=load_E.detach(),
            mean_probability_E=mean_probability_E.detach(),
            ffn_experts_per_token=ffn,
            entropy=entropy,
            dropped_share=dropped,
        )
