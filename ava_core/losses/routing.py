"""Auxiliary losses of a router. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import math

import torch
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


def router_diversity_loss(
    logits_TE: Tensor,
    probabilities_TE: Tensor,
    log_sum_T: Tensor,
    mean_probability_E: Tensor,
    token_mask_T: Tensor | None = None,
) -> Tensor:
    """log E - I(token; expert), nats, scalar: what the routers' choices lack in mutual information with the tokens.

    I = H(mean p) - mean H(p) (ModuleFormer, arXiv 2306.04640, eq. of L_MI; the constant makes 0 the best value, and
    that of a router that is sure of every token and uses all experts alike; log E is that of one to which all tokens
    are the same). A router that sends every token everywhere has a low balance loss too: its experts see the same data
    and learn the same. Chosen over orthogonal gate rows, which say little about where tokens go. It wants
    all experts used alike, whatever tau; a weight well below the balance loss's lets that dominate.
    `log_sum_T` is the logsumexp of `logits_TE`, `mean_probability_E` the mean of the probabilities over the tokens.
    """
    entropy_T = ((log_sum_T[:, None] - logits_TE) * probabilities_TE).sum(dim=-1)
    if token_mask_T is None:
        conditional = entropy_T.mean()
    else:
        conditional = (entropy_T * token_mask_T).sum() / token_mask_T.sum().clamp_min(1)
    # A mean that underflows to 0 would have an infinite gradient.
    log_mean_E = mean_probability_E.clamp_min(torch.finfo(mean_probability_E.dtype).tiny).log()
    marginal = -(mean_probability_E * log_mean_E).sum()
    return math.log(logits_TE.shape[1]) - marginal + conditional
