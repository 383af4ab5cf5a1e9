"""Heterogeneous expert capacity of MoE++ (arXiv 2410.07348, eq. 8). Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor


def expert_shares(tau: float, num_ffn_experts: int, num_experts: int, device: torch.device | None = None) -> Tensor:
    """Share of all assignments that each expert gets in a balanced layer, float64 (E,), summing to 1.

    tau parts for an FFN expert, one for a zero-computation expert: the proportions of eq. 8.
    """
    num_zc = num_experts - num_ffn_experts
    shares_E = torch.full((num_experts,), 1 / (tau * num_ffn_experts + num_zc), dtype=torch.float64, device=device)
    shares_E[:num_ffn_experts] *= tau
    return shares_E


def expert_capacities(
    assignments: int | Tensor, gamma: float, tau: float, num_ffn_experts: int, num_experts: int
) -> Tensor:
    """Most assignments that each of the E experts accepts, int64 (E,), rounded up.

        C_FFN = gamma * tau * T / (tau * N_FFN + N_ZC)        C_ZC = gamma * T / (tau * N_FFN + N_ZC)

    T is `assignments`: tokens times their chosen experts, so that gamma = 1 is just enough for a perfectly
    (tau-weighted) balanced layer whatever the number of experts per token.
    """
    device = assignments.device if isinstance(assignments, Tensor) else None
    shares_E = expert_shares(tau, num_ffn_experts, num_experts, device)
    # The slack keeps an exact quotient such as 6.000000000000001 from being rounded up.
    return torch.ceil(gamma * shares_E * assignments - 1e-9).long()


def within_capacity(ids_TK: Tensor, counted_TK: Tensor, capacity_E: Tensor) -> Tensor:
    """True (T, K) where an assignment is among the first `capacity` of its expert, in token order.

    Token order keeps a later token from displacing an earlier one. Uncounted slots take no capacity.
    """
    num_experts = capacity_E.shape[0]
    flat = torch.where(counted_TK, ids_TK, num_experts).reshape(-1)
    sorted_ids, order = flat.sort(stable=True)
    first_E = torch.searchsorted(sorted_ids, torch.arange(num_experts + 1, device=flat.device))
    rank = torch.empty_like(flat)
    rank[order] = torch.arange(flat.numel(), device=flat.device) - first_E[sorted_ids]
    limit = torch.cat((capacity_E, capacity_E.new_full((1,), flat.numel())))
    return (rank < limit[flat]).view_as(ids_TK)
