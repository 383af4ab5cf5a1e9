"""The MoE++ layer as its authors released it: forward only, to run their weights. Shapes: see `shapes`.

Source: `MoE++/moe_plus_plus_layer.py` of github.com/SkyworkAI/MoE-plus-plus (commit a5425c5), the inference code of
arXiv 2410.07348. `ReleasedMoEPlusPlusLayer` lists where it departs from the paper; `ava_core.models.moe` is the
paper's layer, and the one to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.experts import FFNExperts, scatter_weights
from ava_core.models.moe import ZeroComputationExperts
from ava_core.models.routing import Routing, build_router

K = 2
"""Experts per token and constant experts per layer are fixed in the released code."""
CONSTANT_EXPERTS = 2
GATE_WIDENING = 8
"""The hidden layer of the two-layer gate has this many units per expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedOptions:
    """Switches of the released configuration, with its defaults.

    Attributes:
        two_layer_gate: logits are W_2 tanh(W_1 x), else W x (`moe_2layer_gate`).
        softmax_after_selection: gate values are the softmax of the K chosen logits; the input is then not doubled
            (`moe_use_mixtral_gating`).
        gate_norm_std: scale each token's logits to this standard deviation before the softmax; None leaves them
            (`moe_gate_norm_std` with `moe_use_logits_norm`).
        double_input: experts see K x instead of x (the opposite of `moe_feature_no_mul_topk`).
    """

    two_layer_gate: bool = True
    softmax_after_selection: bool = False
    gate_norm_std: float | None = None
    double_input: bool = True


class ReleasedGate(nn.Module):
    """Router logits of the release, float32: W_2 tanh(W_1 x) + W_g previous logits, without biases."""

    def __init__(self, hidden_size: int, num_experts: int, *, two_layers: bool):
        super().__init__()
        width = GATE_WIDENING * num_experts
        self.hidden_weight = nn.Parameter(torch.empty(width, hidden_size)) if two_layers else None
        self.weight = nn.Parameter(torch.empty(num_experts, width if two_layers else hidden_size))
        self.residual_weight = nn.Parameter(torch.empty(num_experts, num_experts))

    def forward(self, x_TD: Tensor, previous_logits_TE: Tensor | None) -> Tensor:
        x_TD = x_TD.float()
        if self.hidden_weight is not None:
            x_TD = F.linear(x_TD, self.hidden_weight.float()).tanh()
        logits_TE = F.linear(x_TD, self.weight.float())
        if previous_logits_TE is not None:
            # Unlike the rest of the gate, this product runs in the weight's own type.
            previous_logits_TE = previous_logits_TE.to(self.residual_weight.dtype)
            logits_TE = logits_TE + F.linear(previous_logits_TE, self.residual_weight)
        return logits_TE


class ReleasedMoEPlusPlusLayer(nn.Module):
    """Forward of the released MoE++ layer, made of our experts and our router.

    With p = softmax(G(x)) over all E experts and the K = 2 most probable ones chosen:

        G_j(x)  = W_2 tanh(W_1 x) + W_g G_{j-1}        w_i = p_i / sum of the chosen p, with p_zero set to 0
        y       = sum_i w_i E_i(2 x)                   E_constant(x) = a_1 x + a_2 v, [a_1, a_2] = softmax(W_c x)

    Where it departs from the paper:
        - The gate has a hidden layer of 8 E tanh units; the paper's is one matrix (eq. 6).
        - The chosen gate values are rescaled to sum to one; the paper's are the plain probabilities (eq. 1).
        - The zero expert's gate value is cleared before that, so a token that chooses it discards nothing (eq. 3):
          its other expert just gets the weight one.
        - Experts see 2 x (K x), so the copy expert returns 2 x, and the constant expert mixes 2 x with v under
          softmax(W_c 2 x) (eq. 4, 5). The gate sees x.
        - K, two constant, one copy and one zero expert are fixed, and no token is ever dropped: there is neither
          capacity (eq. 8) nor a balance loss (eq. 7).
        - Experts are in the order FFN, constant, copy, zero; the returned logits too. Ours are FFN, zero, copy,
          constant, and so they are inside this layer.

    Why it can't be trained: the release doubles its input in place after the gate has saved it, so its backward
    raises in float32; in half precision, where the gate has a copy, it would run, but nothing balances the experts,
    and a token with the zero expert gives the router no gradient at all, for its weight is the constant 1. We offer
    what the released weights are good for, and no gradients. Unlike the release, ours leaves the caller's tensor
    alone, and sums the experts in float32.
    """

    def __init__(
        self,
        hidden_size: int,
        expert_intermediate_size: int,
        num_experts: int,
        options: ReleasedOptions | None = None,
    ):
        """`num_experts` counts all E, as the release does: E - 4 of them are FFN experts.

        Raises:
            ValueError: E leaves no FFN expert.
        """
        super().__init__()
        fixed = CONSTANT_EXPERTS + 2
        if num_experts <= fixed:
            raise ValueError(f"num_experts = {num_experts}: must be > {fixed}, the zero-computation experts")
        self.options = options or ReleasedOptions()
        self.num_experts, self.num_ffn_experts = num_experts, num_experts - fixed
        config = EnhancedMoEConfig(
            hidden_size=hidden_size,
            num_attention_heads=1,
            head_dim=2,  # there is no attention here
            expert_intermediate_size=expert_intermediate_size,
            num_ffn_experts=self.num_ffn_experts,
            num_zero_experts=1,
            num_copy_experts=1,
            num_constant_experts=CONSTANT_EXPERTS,
            router="top_k",
            num_experts_per_token=K,
            normalize_router_weights=self.options.softmax_after_selection,
        )
        self.gate = ReleasedGate(hidden_size, num_experts, two_layers=self.options.two_layer_gate)
        self.router = build_router(config)
        self.experts = FFNExperts(config)
        self.zero_computation = ZeroComputationExperts(config)
        for parameter in self.parameters():
            nn.init.normal_(parameter.requires_grad_(False), std=config.initializer_range)

    def forward(self, x_BSD: Tensor, previous_logits_TE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the layer's output (B, S, D) and its logits (T, E) in the release's order, for the next layer.

        Raises:
            RuntimeError: gradients are enabled.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "grad mode = on: must be off (torch.no_grad) for the released MoE++ layer, which can't be trained; "
                "MoELayer is the one of the paper"
            )
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        logits_TE = self.gate(x_TD, previous_logits_TE)
        routing = self._route(logits_TE)
        if self.options.double_input and not self.options.softmax_after_selection:
            x_TD = x_TD * K
        out_TD = self.experts(x_TD, routing) + self.zero_computation(x_TD, scatter_weights(routing, self.num_experts))
        return out_TD.view_as(x_BSD).to(x_BSD.dtype), logits_TE

    def _route(self, logits_TE: Tensor) -> Routing:
        """Chosen experts, numbered in our order, and their gate values."""
        if (std := self.options.gate_norm_std) is not None:
            logits_TE = logits_TE / (logits_TE.std(dim=1, keepdim=True) / std)
        N = self.num_ffn_experts
        ours = [*range(N), N + 3, N + 2, N, N + 1]
        routing = self.router(logits_TE[:, ours])
        if self.options.softmax_after_selection:
            return routing
        weights_TK = routing.weights_TK.masked_fill(routing.expert_ids_TK == N, 0.0)
        return replace(routing, weights_TK=weights_TK / weights_TK.sum(dim=1, keepdim=True))

    @torch.no_grad()
    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Copy the weights of one released layer; names are relative to its `mlp.`.

        Raises:
            ValueError: a weight is missing, left over, or of another shape.
        """
        parameters = self._parameters_by_name()
        for name in sorted(parameters.keys() - state.keys()):
            raise ValueError(f"{name} is missing: must be given")
        for name in sorted(state.keys() - parameters.keys()):
            raise ValueError(f"{name} = {tuple(state[name].shape)}: must be a weight that this layer has")
        for name, parameter in parameters.items():
            if state[name].shape != parameter.shape:
                raise ValueError(f"{name} = {tuple(state[name].shape)}: must be {tuple(parameter.shape)}")
            parameter.copy_(state[name])

    def _parameters_by_name(self) -> dict[str, Tensor]:
        """Where each weight of the release belongs, by its name there."""
        gate, N = self.gate, self.num_ffn_experts
        parameters: dict[str, Tensor] = {"moe.gate.gate_map.weight": gate.residual_weight}
        if gate.hidden_weight is None:
            parameters["moe.gate.wg.weight"] = gate.weight
        else:
            parameters |= {"moe.gate.wg.0.weight": gate.hidden_weight, "moe.gate.wg.2.weight": gate.weight}
        for expert in range(N):
            parameters[f"moe.experts.experts.{expert}.up_proj.weight"] = self.experts.gate_up_proj[expert]
            parameters[f"moe.experts.experts.{expert}.down_proj.weight"] = self.experts.down_proj[expert]
        constants, mixes = self.zero_computation.constants, self.zero_computation.mix_weight
        assert constants is not None and mixes is not None
        for c in range(CONSTANT_EXPERTS):
            parameters[f"moe.experts.experts.{N + c}.constant"] = constants[c]
            parameters[f"moe.experts.experts.{N + c}.wg.weight"] = mixes[2 * c : 2 * c + 2]
        return parameters
