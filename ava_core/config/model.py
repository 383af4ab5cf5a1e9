"""The section `model`: the architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ava_core.config.context import LayerType, RopeScalingConfig, window_fault
from ava_core.config.limits import MODEL_SIZES
from ava_core.config.routing import RouterName, router_fault
from ava_core.config.section import Section


class ModelConfig(Section):
    """The architecture; the fields are those of `EnhancedMoEConfig`."""

    hidden_size: Annotated[int, Field(gt=0, le=MODEL_SIZES["hidden_size"])] = 256
    """Width D of the residual stream."""
    num_layers: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_layers"])] = 4
    """Transformer blocks."""
    num_attention_heads: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_attention_heads"])] = 4
    """Query heads."""
    num_key_value_heads: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_key_value_heads"])] = 2
    """Key/value heads; fewer than query heads is grouped-query attention."""
    head_dim: Annotated[int, Field(gt=0, le=MODEL_SIZES["head_dim"])] | None = None
    """Width of one head; null: hidden_size / num_attention_heads."""
    max_position_embeddings: Annotated[int, Field(gt=0, le=MODEL_SIZES["max_position_embeddings"])] = 512
    """Longest sequence in tokens that the model accepts."""
    rope_theta: Annotated[float, Field(gt=0, le=MODEL_SIZES["rope_theta"])] = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    sliding_window: Annotated[int, Field(gt=1, le=MODEL_SIZES["max_position_embeddings"])] | None = None
    """Tokens that a position attends to, itself among them; null: all that came before."""
    layer_types: Annotated[list[LayerType], Field(min_length=1)] | None = None
    """With a sliding window, which layers have it: full_attention or sliding_attention for each, a shorter list being
    repeated over the layers; null: all have it."""
    rms_norm_eps: Annotated[float, Field(gt=0, le=MODEL_SIZES["rms_norm_eps"])] = 1e-6
    """Added to the mean square under the root of every RMSNorm."""
    qk_norm: Literal["head", "projection", "none"] = "head"
    """RMSNorm on queries and keys: of each head, of the whole projection, or none."""
    tie_word_embeddings: bool = True
    """Output head shares the embedding matrix."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability of dropout on the residual branches."""
    initializer_range: Annotated[float, Field(gt=0, le=MODEL_SIZES["initializer_range"])] = 0.02
    """Standard deviation of the initial weights."""
    num_ffn_experts: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_ffn_experts"])] = 8
    """SwiGLU experts per layer."""
    expert_intermediate_size: Annotated[int, Field(gt=0, le=MODEL_SIZES["expert_intermediate_size"])] = 256
    """Inner width of one SwiGLU expert."""
    num_zero_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_zero_experts"])] = 1
    """Experts E(x) = 0 (MoE++, arXiv 2410.07348)."""
    num_copy_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_copy_experts"])] = 1
    """Experts E(x) = x."""
    num_constant_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_constant_experts"])] = 2
    """Experts E(x) = a1 x + a2 v."""
    num_shared_experts: Annotated[int, Field(ge=0, le=MODEL_SIZES["num_shared_experts"])] = 0
    """SwiGLU experts that every token passes."""
    router: RouterName = "top_k"
    """How experts are chosen. top_k: a fixed number; confidence: until the cumulative probability passes a threshold;
    sinkhorn: a balanced assignment while training; hierarchical: groups first, then experts inside; expert_bias: a bias
    that follows the load; expert_choice: experts choose tokens while training."""
    num_experts_per_token: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_experts_per_token"])] = 2
    """k of every router but confidence; of expert_choice, on average."""
    confidence_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """p of the confidence router: the cumulative probability of the chosen experts at which it stops choosing."""
    max_experts_per_token: Annotated[int, Field(gt=0, le=MODEL_SIZES["max_experts_per_token"])] = 4
    """Upper bound on the experts that the confidence router gives a token."""
    num_expert_groups: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_expert_groups"])] = 1
    """Groups of the hierarchical router, of equal size over all experts in their order; 1 is plain top_k."""
    num_groups_per_token: Annotated[int, Field(gt=0, le=MODEL_SIZES["num_groups_per_token"])] = 1
    """Groups of the hierarchical router that one token's experts may come from."""
    sinkhorn_iterations: Annotated[int, Field(gt=0, le=MODEL_SIZES["sinkhorn_iterations"])] = 8
    """Normalisations of columns and rows by the sinkhorn router."""
    expert_bias_update_rate: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["expert_bias_update_rate"])] = 0.001
    """Change of an expert's bias per optimiser step in the expert_bias router, up or down by its load (arXiv
    2408.15664)."""
    normalize_router_weights: bool = False
    """Renormalise the weights of the chosen experts to sum to 1."""
    gating_residuals: bool = True
    """Add the previous layer's router logits through a learned map (MoE++, eq. 6)."""
    tau: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Weight of a zero-computation expert in the balance loss, and share of capacity (MoE++, eq. 7 and 8)."""
    capacity_factor: Annotated[float, Field(gt=0.0, le=MODEL_SIZES["capacity_factor"])] | None = None
    """gamma: tokens past an expert's capacity are dropped; null: nothing is dropped. For expert_choice: how many tokens
    the experts choose; 1 or null: as many as give k experts per token on average."""
    balance_loss_weight: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["balance_loss_weight"])] = 0.01
    """Weight of the heterogeneous load balance loss."""
    router_z_loss_weight: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["router_z_loss_weight"])] = 0.001
    """Weight of the router z-loss."""
    router_diversity_weight: Annotated[float, Field(ge=0.0, le=MODEL_SIZES["router_diversity_weight"])] = 0.0
    """Weight of the loss that keeps experts from seeing the same tokens (mutual information, arXiv 2306.04640)."""
    router_jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Multiplicative noise on the router's input in training, uniform in 1 +- jitter."""
    experts_implementation: Literal["auto", "grouped_mm", "looped", "native", "dense"] = "auto"
    """How experts are evaluated; auto: by device. grouped_mm: PyTorch's grouped matrix products; looped: one expert
    after the other; native: Ava's own kernels for CPUs; dense: every expert on every token, the slow reference."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size}: must be a multiple of num_attention_heads"
                f" = {self.num_attention_heads}, or head_dim be given"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads}: must be a multiple of num_key_value_heads"
                f" = {self.num_key_value_heads}"
            )
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if head_dim % 2:
            raise ValueError(f"head_dim = {head_dim}: must be even, for rotary embeddings rotate pairs")
        return self

    @model_validator(mode="after")
    def _router_fits(self) -> ModelConfig:
        if fault := router_fault(self):
            field, requirement = fault
            raise ValueError(f"{field} = {getattr(self, field)}: {requirement}")
        return self

    @model_validator(mode="after")
    def _window_fits(self) -> ModelConfig:
        if fault := window_fault(self.sliding_window, self.layer_types, self.num_layers):
            field, requirement = fault
            raise ValueError(f"{field} = {getattr(self, field)}: {requirement}")
        return self

    @property
    def num_experts(self) -> int:
        """Experts that the router chooses from: FFN, zero, copy and constant."""
        return self.num_ffn_experts + self.num_zero_experts + self.num_copy_experts + self.num_constant_experts


OF_TRAINING = frozenset(
    {
        "dropout",
        "router_jitter",
        "balance_loss_weight",
        "router_z_loss_weight",
        "router_diversity_weight",
        "tau",
        "capacity_factor",
        "expert_bias_update_rate",
        "sinkhorn_iterations",
        "initializer_range",
        "experts_implementation",
    }
)
"""Fields of `model` that only a training reads: noise, losses, what is dropped, how a balanced assignment is found."""
