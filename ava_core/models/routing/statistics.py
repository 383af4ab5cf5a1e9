"""What a layer's router did with a batch, measured cheaply and without gradients. Shapes: see `shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ava_core.models.routing.routes import Routes

DEAD_SHARE = 0.01
"""Fraction of an even share of the assignments; an expert with less is dead."""
COLLAPSE_SHARE = 0.25
"""Fraction of the way from "every token uses the same experts" to "all are used evenly"; less is a collapse."""


@dataclass(slots=True, kw_only=True)
class RoutingStatistics:
    """Detached figures of one layer, padding excluded.

    Attributes:
        load_E: share of tokens that chose each expert, before any dropping; sums to experts per token.
        mean_probability_E: each expert's mean router probability; sums to 1.
        ffn_experts_per_token: scalar; FFN experts evaluated for the average token.
        entropy: scalar, nats; mean entropy of the router's distribution of a token (log E is uniform).
        dropped_share: scalar; share of assignments dropped for capacity.
    """

    load_E: Tensor
    mean_probability_E: Tensor
    ffn_experts_per_token: Tensor
    entropy: Tensor
    dropped_share: Tensor

    @property
    def load_cv(self) -> Tensor:
        """Coefficient of variation: population standard deviation of the loads over their mean, scalar; 0 is even."""
        return self.load_E.std(correction=0) / self.load_E.mean()

    @property
    def dead_experts(self) -> Tensor:
        """Number of experts whose load is below `DEAD_SHARE` of an even share, scalar."""
        return (self.load_E < DEAD_SHARE * self.load_E.mean()).sum()

    @property
    def effective_experts(self) -> Tensor:
        """How many experts carry the load, scalar; see `effective_experts`."""
        return effective_experts(self.load_E)

    @property
    def collapsed(self) -> Tensor:
        """Whether nearly all tokens go to the same few experts, scalar bool; see `has_collapsed`."""
        return has_collapsed(self.load_E)

    @staticmethod
    @torch.no_grad()
    def measure(
        *, load_E: Tensor, kept_E: Tensor, mean_probability_E: Tensor, entropy: Tensor, num_ffn_experts: int
    ) -> RoutingStatistics:
        """Figures from the loads before and after dropping, both shares of tokens (E,).

        A few sums over E numbers: the passes over (T, K) and (T, E) are those that the losses need anyway.
        """
        assigned = load_E.sum()
        dropped = (assigned - kept_E.sum()) / assigned.clamp_min(torch.finfo(assigned.dtype).tiny)
        return RoutingStatistics(
            load_E=load_E.detach(),
            mean_probability_E=mean_probability_E.detach(),
            ffn_experts_per_token=kept_E[:num_ffn_experts].sum(),
            entropy=entropy.detach(),
            dropped_share=dropped,
        )


def effective_experts(load_E: Tensor) -> Tensor:
    """Perplexity of the loads, normalised to sum to 1 over the last axis: how many experts carry the load.

    E when all are used evenly, K when every token uses the same K.
    """
    share_E = load_E / load_E.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(load_E.dtype).tiny)
    return torch.special.entr(share_E).sum(dim=-1).exp()


def has_collapsed(load_E: Tensor) -> Tensor:
    """Whether a router sends nearly all tokens to the same few experts, bool; E is the last axis.

    With K experts per token on average: whether `effective_experts` < K + `COLLAPSE_SHARE` (E - K). Means something
    for batches of many more tokens than experts; a single token is always "collapsed".
    """
    per_token, E = load_E.sum(dim=-1), load_E.shape[-1]
    # Routing to all experts (K = E) leaves rounding alone to decide; the margin decides it for "not collapsed".
    return effective_experts(load_E) < per_token + COLLAPSE_SHARE * (E - per_token) - 1e-3


def collapsed_layers(statistics: Sequence[RoutingStatistics]) -> list[int]:
    """Indices of the layers whose routing has collapsed; synchronises with the device once."""
    flags = torch.stack([layer.collapsed for layer in statistics]).tolist()
    return [index for index, flag in enumerate(flags) if flag]


@torch.no_grad()
def count_choices(routes: Routes, token_mask_T: Tensor | None, num_experts: int) -> tuple[Tensor, Tensor]:
    """Tokens that chose each expert, and those that it kept after dropping, both (E,), float32; padding excluded."""

    def count(slots_TK: Tensor) -> Tensor:
        counted_TK = slots_TK if token_mask_T is None else slots_TK & token_mask_T[:, None]
        zeros_E = torch.zeros(num_experts, device=slots_TK.device)
        return zeros_E.scatter_add_(0, routes.expert_ids_TK.reshape(-1), counted_TK.reshape(-1).float())

    chosen_E = count(routes.selected_TK)
    return chosen_E, chosen_E if routes.used_TK is routes.selected_TK else count(routes.used_TK)


@torch.no_grad()
def mean_entropy(logits_TE: Tensor, probabilities_TE: Tensor, log_sum_T: Tensor, token_mask_T: Tensor | None) -> Tensor:
    """Mean over tokens of -sum p log p, nats, scalar, with log p = logits - logsumexp.

    The difference is taken first: the shorter log_sum_T - sum p logits cancels badly at large logits.
    """
    entropy_T = ((log_sum_T[:, None] - logits_TE) * probabilities_TE).sum(dim=-1)
    if token_mask_T is None:
        return entropy_T.mean()
    return (entropy_T * token_mask_T).sum() / token_mask_T.sum().clamp_min(1)
