"""Auxiliary losses of a router. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

from torch import Tensor


def balance_loss(load_E: Tensor, mean_probability_E: Tensor, num_ffn_experts: int, tau: float) -> Tensor:
    """Heterogeneous load balance of MoE++ (arXiv 2410.07348, eq. 7): sum_i eta_i f_i P_i.

    `load_E` is f, the share of tokens that chose expert i; `mean_probability_E` is P; eta is 1 for the first
    `num_ffn_experts` and tau for the zero-computation experts after them. Gradients flow through P only.
    Uniform routing of K experts per token gives K (N_FFN + tau N_ZC) / E^2.
    """
    product_E = load_E.detach() * mean_probability_E
    return product_E[:num_ffn_experts].sum() + tau * product_E[num_ffn_experts:].sum()


def router_z_loss(log_sums: Tensor, token_mask_T: Tensor | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5); keeps logits small.

    `log_sums` is the logsumexp of each token's logits (T,), or of each gate's logits (T, gates) where a router has
    several: their mean counts.
    """
    squared_T = log_sums.square()
    if squared_T.dim() == 2:
        squared_T = squared_T.mean(dim=1)
    if token_mask_T is None:
        return squared_T.mean()
    return (squared_T * token_mask_T).sum() / token_mask_T.sum().clamp_min(1)
