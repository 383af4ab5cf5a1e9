"""The MoE++ layer (arXiv 2410.07348). Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.experts import FFNExperts, SharedExperts, scatter_weights
from ava_core.models.routers import Routing, build_router


class Gate(nn.Module):
    """Router logits with gating residuals: G_j(x_j) = W_j x_j + W_g,j G_{j-1}(x_{j-1}) (MoE++, eq. 6).

    The residual runs over raw logits; the first layer has none. Always float32, for a choice between experts
    shouldn't hang on rounding. W_g starts at zero: at first each layer routes by its own input.
    """

    def __init__(self, config: EnhancedMoEConfig, layer_idx: int):
        super().__init__()
        E = config.num_experts
        self.weight = nn.Parameter(torch.empty(E, config.hidden_size))
        residual = config.gating_residuals and layer_idx > 0
        self.residual_weight = nn.Parameter(torch.zeros(E, E)) if residual else None
        self.jitter = config.router_jitter

    def forward(self, x_TD: Tensor, previous_logits_TE: Tensor | None) -> Tensor:
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.training and self.jitter:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
            logits_TE = x_TD @ self.weight.float().T
            if self.residual_weight is not None and previous_logits_TE is not None:
                logits_TE = logits_TE + previous_logits_TE @ self.residual_weight.float().T
        return logits_TE


class ZeroComputationExperts(nn.Module):
    """Zero E(x) = 0, copy E(x) = x and constant E(x) = a1 x + a2 v experts (MoE++, eq. 3 to 5).

    [a1, a2] = softmax(W_c x), a pair per constant expert. They need no dispatch: what they add to a token is
    a multiple of the token and a mix of the C vectors v.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        C = config.num_constant_experts
        self.first_copy = config.num_ffn_experts + config.num_zero_experts
        self.first_constant = self.first_copy + config.num_copy_experts
        self.constants = nn.Parameter(torch.empty(C, config.hidden_size)) if C else None
        self.mix_weight = nn.Parameter(torch.empty(2 * C, config.hidden_size)) if C else None

    def forward(self, x_TD: Tensor, weights_TE: Tensor) -> Tensor:
        """Return their weighted sum (T, D) in float32; `weights_TE` as from `scatter_weights`."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            scale_T = weights_TE[:, self.first_copy : self.first_constant].sum(dim=-1)
            if self.constants is None or self.mix_weight is None:
                return scale_T[:, None] * x_TD
            weights_TC = weights_TE[:, self.first_constant :]
            mix_TC2 = (x_TD @ self.mix_weight.float().T).unflatten(-1, (-1, 2)).softmax(dim=-1)
            scale_T = scale_T + (weights_TC * mix_TC2[..., 0]).sum(dim=-1)
            return torch.addcmul((weights_TC * mix_TC2[..., 1]) @ self.constants.float(), scale_T[:, None], x_TD)


class MoELayer(nn.Module):
    """Router, FFN experts, zero-computation experts and shared experts of one decoder layer."""

    def __init__(self, config: EnhancedMoEConfig, layer_idx: int):
        super().__init__()
        self.num_experts = config.num_experts
        self.gate = Gate(config, layer_idx)
        self.router = build_router(config)
        self.experts = FFNExperts(config)
        self.zero_computation = ZeroComputationExperts(config) if config.num_zero_computation_experts else None
        self.shared_experts = SharedExperts(config) if config.num_shared_experts else None

    def forward(
        self, x_BSD: Tensor, previous_logits_TE: Tensor | None = None, token_mask_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Routing]:
        """Return the layer's output (B, S, D), its router logits (T, E) float32, and its routing."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        logits_TE = self.gate(x_TD, previous_logits_TE)
        routing = self.router(logits_TE, token_mask_T)
        out_TD = self.experts(x_TD, routing)
        if self.zero_computation is not None:
            out_TD = out_TD + self.zero_computation(x_TD, scatter_weights(routing, self.num_experts))
        out_BSD = out_TD.view_as(x_BSD)
        if self.shared_experts is not None:
            out_BSD = out_BSD + self.shared_experts(x_BSD)
        return out_BSD.to(x_BSD.dtype), logits_TE, routing
