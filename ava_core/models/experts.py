"""FFN experts: SwiGLU networks with their weights stacked along a leading expert axis. Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ava_core import kernels
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.dispatch import combine, dispatch, sort_by_expert
from ava_core.models.grouped_linear import grouped_linear, looped_linear
from ava_core.models.linear import Linear
from ava_core.models.routing import Routing

GROUP_ROWS = 32
"""On a CPU, rows of an expert are padded to a multiple of it: oneDNN makes a new primitive for every unseen shape."""


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of a tensor that holds both along its last axis (arXiv 2002.05202, eq. 6)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that autocast asks for, else the input's. The grouped products don't follow autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class FFNExperts(nn.Module):
    """N SwiGLU experts: E_i(x) = down_i (silu(gate_i x) * up_i x).

    `gate_up_proj` is (N, 2F, D), gate first; `down_proj` is (N, D, F). A token is evaluated by its chosen
    experts only, except with the "dense" implementation; see `EnhancedMoEConfig.experts_implementation`.
    """

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        N, D, F_ = config.num_ffn_experts, config.hidden_size, config.expert_intermediate_size
        self.config = config
        self.gate_up_proj = nn.Parameter(torch.empty(N, 2 * F_, D))
        self.down_proj = nn.Parameter(torch.empty(N, D, F_))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs, (T, D), in float32 (or wider); in bfloat16 from the kernels."""
        implementation = self._implementation(x_TD)
        if implementation == "dense":
            return self._dense(x_TD, routing)
        if implementation == "native":
            return self._native(x_TD, routing)
        return self._sparse(x_TD, routing, on_device=implementation == "grouped_mm")

    def _implementation(self, x_TD: Tensor) -> str:
        """The configured way to evaluate, or the fastest that these tensors allow."""
        wanted = self.config.experts_implementation or "auto"
        if wanted == "auto":
            traced = torch.compiler.is_compiling()  # the others read sizes from the data, or are opaque
            wanted = "native" if x_TD.device.type == "cpu" and not traced else "grouped_mm"
        even = x_TD.shape[1] % 2 == 0 and self.down_proj.shape[2] % 2 == 0
        if wanted == "native" and not (even and kernels.products_pay() and kernels.usable(x_TD, self.down_proj)):
            return "looped"
        return wanted

    def _native(self, x_TD: Tensor, routing: Routing) -> Tensor:
        p = sort_by_expert(routing.expert_ids_TK, routing.used_TK, self.down_proj.shape[0], keep_unused=False)
        row_TK = p.row_TK.masked_fill(~p.occupied_TK, -1)
        starts_N = F.pad(p.counts_N.cumsum(0), (1, 0))
        return kernels.swiglu_experts(
            x_TD, routing.weights_TK, self.gate_up_proj, self.down_proj, row_TK, p.slot_R, p.token_R, starts_N
        )

    def _sparse(self, x_TD: Tensor, routing: Routing, *, on_device: bool) -> Tensor:
        dtype = compute_dtype(x_TD)
        N = self.gate_up_proj.shape[0]
        # On an accelerator, or compiled, all T * K rows are kept: the host needn't know how many are occupied.
        keep_unused = on_device and (x_TD.device.type != "cpu" or torch.compiler.is_compiling())
        permutation = sort_by_expert(routing.expert_ids_TK, routing.used_TK, N, keep_unused=keep_unused)
        if not on_device:
            permutation = permutation.padded(GROUP_ROWS)
        rows_RD = dispatch(x_TD.to(dtype), permutation)
        gate_up, down = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        if on_device:
            ends_N = permutation.counts_N.cumsum(0).to(torch.int32)
            hidden_RF = swiglu(grouped_linear(rows_RD, gate_up, ends_N))
            out_RD = grouped_linear(hidden_RF, down, ends_N)
        else:
            counts = permutation.counts_N.tolist()
            hidden_RF = swiglu(looped_linear(rows_RD, gate_up, counts))
            out_RD = looped_linear(hidden_RF, down, counts)
        return combine(out_RD, routing.weights_TK.to(torch.promote_types(dtype, torch.float32)), permutation)

    def _dense(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Every expert for every token. No sizes or branches depend on data, so it can be exported."""
        weights_TE = scatter_weights(routing, self.config.num_experts)
        N = self.gate_up_proj.shape[0]
        out_NTD = swiglu(x_TD @ self.gate_up_proj.mT) @ self.down_proj.mT
        # Not an einsum, which autocast would run in bfloat16.
        return (out_NTD.to(weights_TE.dtype) * weights_TE[:, :N].T[..., None]).sum(dim=0)


class SharedExperts(nn.Module):
    """Experts that every token uses with weight one (DeepSeekMoE, arXiv 2401.06066), as one wide SwiGLU."""

    def __init__(self, config: EnhancedMoEConfig):
        super().__init__()
        width = config.num_shared_experts * config.expert_intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, 2 * width)
        self.down_proj = Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x)))


def scatter_weights(routing: Routing, num_experts: int) -> Tensor:
    """Gate values by expert, float32 (T, E): 0 where an expert wasn't chosen or the slot was dropped."""
    weights_TK = routing.weights_TK
    zeros = weights_TK.new_zeros(weights_TK.shape[0], num_experts)
    return zeros.scatter(1, routing.expert_ids_TK, weights_TK)
