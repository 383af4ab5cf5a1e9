"""Sparse upcycling: a dense model's feed-forward networks as the experts of a mixture (arXiv 2212.05055).

Every expert begins as a copy, the router is fresh, and the weights of the chosen experts are renormalised to sum to
one: a weighted mean of equal outputs is that output, so without noise the mixture computes what the dense model does.

With granularity G the network is cut along its hidden layer into G experts of 1/G of its width, as fine-grained
mixtures have them (arXiv 2401.06066), and `down_proj` is multiplied by G. A SwiGLU network is the sum of its segments,
so the mean of all G segments of one copy, times G, is the network. That a token chooses the segments of a copy together
is up to the router: the G rows of a copy begin equal (virtual groups, arXiv 2410.07524), so their logits are.
"""

from __future__ import annotations

from dataclasses import dataclass

from ava_core.models.configuration import EnhancedMoEConfig

# What a mixture needs in training to stay one; of a source without a router there is nothing to carry over.
BALANCE_LOSS_WEIGHT, ROUTER_Z_LOSS_WEIGHT = 0.01, 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcycling:
    """How a dense model becomes a mixture.

    Attributes:
        experts: N, experts per layer.
        experts_per_token: K, a multiple of the granularity.
        granularity: G, experts that one copy of the network is cut into; N is a multiple of it.
        noise: standard deviation of what is added to each expert's matrices, relative to that of the matrix.
        seed: of the router and the noise.
    """

    experts: int
    experts_per_token: int
    granularity: int = 1
    noise: float = 0.0
    seed: int = 0


def upcycled_config(dense: EnhancedMoEConfig, upcycling: Upcycling) -> EnhancedMoEConfig:
    """The configuration of the mixture that a mixture of one expert becomes.

    Raises:
        ValueError: the model has more experts than one, or the numbers don't fit together.
    """
    E, K, G = upcycling.experts, upcycling.experts_per_token, upcycling.granularity
    width = dense.expert_intermediate_size
    for holds, field, value, must_be in (
        (dense.num_experts == 1, "num_experts", dense.num_experts, "1: only a dense model is upcycled"),
        (G >= 1, "granularity", G, ">= 1"),
        (width % G == 0, "granularity", G, f"a divisor of the feed-forward network's width, {width}"),
        (E >= 1 and E % G == 0, "experts", E, f"a multiple of the granularity, {G}"),
        (1 <= K <= E, "experts_per_token", K, f"in 1 .. {E}, the number of experts"),
        (K % G == 0, "experts_per_token", K, f"a multiple of the granularity, {G}"),
        (0 <= upcycling.noise < 1, "noise", upcycling.noise, "in [0, 1)"),
    ):
        if not holds:
            raise ValueError(f"{field} = {value}: must be {must_be}")
    changes = {
        "num_ffn_experts": E,
        "num_experts_per_token": K,
        "expert_intermediate_size": width // G,
        "router": "top_k",
        "normalize_router_weights": True,
        "gating_residuals": False,
        "balance_loss_weight": BALANCE_LOSS_WEIGHT if E > 1 else 0.0,
        "router_z_loss_weight": ROUTER_Z_LOSS_WEIGHT if E > 1 else 0.0,
    }
    return EnhancedMoEConfig.from_dict({**dense.to_dict(), **changes})
