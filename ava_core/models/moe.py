"""The MoE++ layer (arXiv 2410.07348). Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ava_core import kernels
from ava_core.models.auxiliary import AuxiliaryGradient
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.experts import FFNExperts, SharedExperts, scatter_weights
from ava_core.models.routing import RouteTape, Routing, build_router


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow_product(x_TD: Tensor, weight: Tensor) -> Tensor:
    """x times the transposed weight (n, D) for a small n, (T, n), in float32 (or wider) whatever autocast says."""
    if kernels.usable(x_TD, weight):
        return kernels.narrow_linear(x_TD, weight)
    with torch.autocast(x_TD.device.type, enabled=False):
        x_TD = at_least_float32(x_TD)
        return x_TD @ weight.to(x_TD.dtype).T


class Gate(nn.Module):
    """Router logits with gating residuals: G_j(x_j) = W_j x_j + W_g,j G_{j-1}(x_{j-1}) (MoE++, eq. 6).

    As wide as `config.num_logits`, E for most routers. The residual runs over raw logits; the first layer has none.
    Always float32 (or wider), so that a choice between experts doesn't depend on bfloat16's rounding (Switch, arXiv
    2101.03961, section 2.4). W_g starts at zero: at first each layer routes by its own input.
    """

    def __init__(self, config: EnhancedMoEConfig, layer_idx: int):
        super().__init__()
        width = config.num_logits
        self.weight = nn.Parameter(torch.empty(width, config.hidden_size))
        residual = config.gating_residuals and layer_idx > 0
        self.residual_weight = nn.Parameter(torch.zeros(width, width)) if residual else None
        self.jitter = config.router_jitter

    def forward(self, x_TD: Tensor, previous_logits_TE: Tensor | None) -> Tensor:
        if self.training and self.jitter:
            x_TD = at_least_float32(x_TD)
            x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
        logits_TE = narrow_product(x_TD, self.weight)
        if self.residual_weight is not None and previous_logits_TE is not None:
            logits_TE = logits_TE + narrow_product(previous_logits_TE, self.residual_weight)
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

    def forward(self, x_TD: Tensor, weights_TE: Tensor, onto_TD: Tensor | None = None) -> Tensor:
        """Return their weighted sum (T, D) in float32 (or wider), added to `onto_TD` if that is given.

        `weights_TE` are as from `scatter_weights`. In bfloat16 where the kernels take `x_TD` and `onto_TD`.
        """
        scale_T = weights_TE[:, self.first_copy : self.first_constant].sum(dim=-1)
        mix_TC = None
        if self.mix_weight is not None:
            weights_TC = weights_TE[:, self.first_constant :]
            pairs_TC2 = narrow_product(x_TD, self.mix_weight).unflatten(-1, (-1, 2))
            # The softmax of a pair is a sigmoid of their difference, which takes a sixth of the time.
            copied_TC = weights_TC * torch.sigmoid(pairs_TC2[..., 0] - pairs_TC2[..., 1])
            scale_T, mix_TC = scale_T + copied_TC.sum(dim=-1), weights_TC - copied_TC
        elif self.first_copy == self.first_constant and onto_TD is not None:
            return onto_TD  # zero experts alone add nothing
        return self._add(onto_TD, x_TD, scale_T, mix_TC)

    def _add(self, onto_TD: Tensor | None, x_TD: Tensor, scale_T: Tensor, mix_TC: Tensor | None) -> Tensor:
        """onto + scale x + mix constants, each visited once where a kernel is there for it."""
        if onto_TD is not None and kernels.usable(onto_TD, x_TD, *self.parameters()):
            if mix_TC is None:
                mix_TC = scale_T.new_empty(len(scale_T), 0)
            return kernels.zero_computation(onto_TD, x_TD, scale_T, mix_TC, self.constants)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = at_least_float32(x_TD)
            out_TD = torch.zeros_like(x_TD) if onto_TD is None else onto_TD.to(x_TD.dtype)
            if self.constants is not None and mix_TC is not None:
                out_TD = torch.addmm(out_TD, mix_TC, self.constants.to(x_TD.dtype))
            return torch.addcmul(out_TD, scale_T[:, None], x_TD)


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
        self,
        x_BSD: Tensor,
        previous_logits_TE: Tensor | None = None,
        token_mask_T: Tensor | None = None,
        tape: RouteTape | None = None,
        gradient: AuxiliaryGradient | None = None,
    ) -> tuple[Tensor, Tensor, Routing]:
        """Return the layer's output (B, S, D), the logits of its gate (T, num_logits) float32, and its routing.

        The logits are for the next layer's gating residual; `Routing.logits_TE` has those of the experts. `tape`
        records the routes, or replays those that it holds; `gradient` is what the router's losses add to the backward
        pass.
        """
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        logits_TE = self.gate(x_TD, previous_logits_TE)
        routing = self.router(logits_TE, token_mask_T, tape, gradient)
        out_TD = self.experts(x_TD, routing)
        if self.zero_computation is not None:
            out_TD = self.zero_computation(x_TD, scatter_weights(routing, self.num_experts), out_TD)
        out_BSD = out_TD.view_as(x_BSD)
        if self.shared_experts is not None:
            out_BSD = out_BSD + self.shared_experts(x_BSD)
        return out_BSD.to(x_BSD.dtype), logits_TE, routing
