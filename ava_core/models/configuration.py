"""Configuration of the MoE++ language model (arXiv 2410.07348).

The field names are those of the `model:` section of an Ava configuration; `vocab_size` and the special token
ids come from the tokenizer.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ava_core.config.context import YARN, checked_parameters, repeated, window_fault
from ava_core.config.limits import MODEL_SIZES
from ava_core.config.routing import ROUTERS, max_slots, num_logits, router_fault

EXPERTS_IMPLEMENTATIONS = ("auto", "grouped_mm", "looped", "native", "dense")
QK_NORMS = ("head", "projection", "none")
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "num_ffn_experts",
    "expert_intermediate_size",
    "num_experts_per_token",
    "num_expert_groups",
    "num_groups_per_token",
    "sinkhorn_iterations",
    "tau",
)
_NOT_NEGATIVE = (
    "initializer_range",
    "num_zero_experts",
    "num_copy_experts",
    "num_constant_experts",
    "num_shared_experts",
    "expert_bias_update_rate",
    "balance_loss_weight",
    "router_z_loss_weight",
    "router_diversity_weight",
)


class EnhancedMoEConfig(PreTrainedConfig):
    """Shape and routing of an `EnhancedMoEModel`. Every field has a working default.

    Raises:
        ValueError: a field is outside its range; the message names the field, its value and what is allowed.

    Fields whose name doesn't say it all:
        num_layers: decoder layers; readable as `num_hidden_layers` too.
        num_key_value_heads: key/value heads of grouped-query attention; None means one per query head.
        head_dim: width of one head; None means hidden_size / num_attention_heads.
        max_position_embeddings: the model's context, in tokens: the longest sequence it is meant for.
        rope_theta: base of the frequencies of RoPE; kept in `rope_parameters` as Transformers 5 does.
        rope_parameters: with Transformers' names also how positions are scaled: `ava_core.models.rope`. The section
            `model.rope_scaling` of a configuration is read too, as `rope_scaling`.
        sliding_window: tokens that a position attends to, itself among them; None: all before it.
        layer_types: "full_attention" or "sliding_attention" for each layer, repeated if they are fewer; there only
            with a sliding window, and then every layer has it by default.
        qk_norm: RMSNorm of queries and keys: of each "head" (Qwen3), of the whole "projection" (OLMoE), or "none";
            True and False are read as "head" and "none".
        dropout: probability on the output of each attention and mixture block, while training.
        num_ffn_experts: N_FFN, the SwiGLU experts. Their indices come first: 0 .. N_FFN - 1.
        num_zero_experts, num_copy_experts, num_constant_experts: the zero-computation experts, in this order
            after the FFN experts. Eq. 3 to 5 of MoE++.
        num_shared_experts: SwiGLU experts that every token passes through, beside the routed ones (DeepSeekMoE, arXiv
            2401.06066).
        router: how experts are chosen; each is a class in the module of `ava_core.models.routing` that has its name.
        num_experts_per_token: K of every router but "confidence" (of "expert_choice", on average).
        max_experts_per_token: bound on K of the "confidence" router; None means every expert.
        num_expert_groups: of the "hierarchical" router: groups of equal size, contiguous over all E experts; 1 is
            plain top-k.
        num_groups_per_token: of them, those that a token's experts may come from.
        sinkhorn_iterations: of the "sinkhorn" router: normalisations of columns and rows.
        expert_bias_update_rate: of the "expert_bias" router: change of the bias per optimiser step.
        normalize_router_weights: rescale the chosen weights of a token to sum to one.
        gating_residuals: add a learned map of the previous layer's router logits to this layer's (eq. 6).
        tau: weight of a zero-computation expert in the balance loss, where an FFN expert has 1 (eq. 7), and capacity of
            an FFN expert relative to a zero-computation one (eq. 8). tau < 1 sends more tokens to the latter.
        capacity_factor: gamma of eq. 8, in force while training; None never drops a token. For "expert_choice", how
            many tokens the experts choose, 1 (the same as None) meaning K experts per token on average.
        balance_loss_weight, router_z_loss_weight, router_diversity_weight: weights of the auxiliary losses in the
            total loss, whoever computes it; see `ava_core.losses.routing`. A change is in force from the next pass.
        router_jitter: the router's input is multiplied by noise from U(1 - jitter, 1 + jitter) in training (Switch,
            arXiv 2101.03961).
        experts_implementation: "grouped_mm" (GPUs), "looped" (CPUs), "native" (CPUs: Ava's own kernels), "dense"
            (every expert for every token: the reference, and the one that can be exported), or "auto" (by device).

    Other tools find what they look for: `num_experts_per_tok`, `num_local_experts`, `router_aux_loss_coef`,
    `output_router_logits` and `auto_map` can be read, and all but the number of experts written.
    """

    model_type = "ava_moe"
    keys_to_ignore_at_inference = [
        "past_key_values",
        "hidden_states",
        "aux_loss",
        "main_loss",
        "loss_parts",
        "router_logits",
        "router_choices",
        "router_statistics",
        "routes",
    ]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "num_experts_per_tok": "num_experts_per_token",
        "num_local_experts": "num_experts",
    }
    # Not fields: config.json holds them only where somebody set them. So it is with `layer_types`, which isn't even an
    # attribute without a window, for Transformers asks whether it is.
    output_router_logits = False
    sliding_window: ClassVar[int | None] = None
    auto_map: ClassVar[dict[str, str]] = {}  # not None: Transformers looks for names in it

    vocab_size: int = 8192
    hidden_size: int = 256
    num_layers: int = 4
    num_attention_heads: int = 4
    # None stands for a value that __post_init__ fills in; readers find an int.
    num_key_value_heads: int = None  # type: ignore[assignment]
    head_dim: int = None  # type: ignore[assignment]
    max_position_embeddings: int = 256
    rope_theta: float = 10_000.0
    rope_parameters: dict = None  # type: ignore[assignment]
    rms_norm_eps: float = 1e-6
    qk_norm: str | bool = "head"
    tie_word_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    num_ffn_experts: int = 8
    expert_intermediate_size: int = 256
    num_zero_experts: int = 1
    num_copy_experts: int = 1
    num_constant_experts: int = 2
    num_shared_experts: int = 0
    router: str = "top_k"
    num_experts_per_token: int = 2
    confidence_threshold: float = 0.6
    max_experts_per_token: int | None = 4
    num_expert_groups: int = 1
    num_groups_per_token: int = 1
    sinkhorn_iterations: int = 8
    expert_bias_update_rate: float = 0.001
    normalize_router_weights: bool = False
    gating_residuals: bool = True
    tau: float = 0.75
    capacity_factor: float | None = None
    balance_loss_weight: float = 0.01
    router_z_loss_weight: float = 0.001
    router_diversity_weight: float = 0.0
    router_jitter: float = 0.0
    experts_implementation: str | None = "auto"
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads and self.num_attention_heads > 0:
            self._require(
                self.hidden_size % self.num_attention_heads == 0,
                "hidden_size",
                f"a multiple of num_attention_heads ({self.num_attention_heads}) unless head_dim is set",
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if isinstance(self.qk_norm, bool):
            self.qk_norm = "head" if self.qk_norm else "none"
        if self.experts_implementation is None:
            self.experts_implementation = "auto"
        self._validate_fields()
        given = kwargs.pop("rope_scaling", None) or self.rope_parameters or {}
        self.rope_parameters = checked_parameters(given, self.rope_theta, self.max_position_embeddings, self.head_dim)
        self.rope_theta = self.rope_parameters["rope_theta"]
        kwargs |= self._window(kwargs)
        super().__post_init__(**kwargs)

    @property
    def ignore_keys_at_rope_validation(self) -> set[str]:  # type: ignore[override]  # nobody writes it
        """What Transformers would warn of: only with "yarn" does it know the original context."""
        kind = (self.rope_parameters or {}).get("rope_type")
        return set() if kind == YARN else {"original_max_position_embeddings"}

    def _window(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Take the window and the layers that have it out of `fields`; none of them where there is no window."""
        window, types = fields.pop("sliding_window", None), fields.pop("layer_types", None)
        layers = fields.get("num_hidden_layers") or self.num_layers  # its other name is no field
        if fault := window_fault(window, types, layers):
            field, requirement = fault
            raise ValueError(f"{field} = {window if field == 'sliding_window' else types!r}: {requirement}")
        return {} if window is None else {"sliding_window": window, "layer_types": repeated(types, layers)}

    @property
    def num_zero_computation_experts(self) -> int:
        """N_ZC: zero, copy and constant experts together."""
        return self.num_zero_experts + self.num_copy_experts + self.num_constant_experts

    @property
    def num_experts(self) -> int:
        """E: all routed experts, the width of the router's logits."""
        return self.num_ffn_experts + self.num_zero_computation_experts

    @property
    def router_aux_loss_coef(self) -> float:
        """`balance_loss_weight` as the coefficient of Transformers' load balancing loss, which is E times ours."""
        return self.balance_loss_weight / self.num_experts

    @router_aux_loss_coef.setter
    def router_aux_loss_coef(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ValueError(f"router_aux_loss_coef = {value!r}: must be >= 0")
        if value != self.router_aux_loss_coef:  # or writing what was read would round
            self.balance_loss_weight = value * self.num_experts

    @property
    def num_logits(self) -> int:
        """Width of the gate; see `ava_core.config.routing.num_logits`."""
        return num_logits(self)

    @property
    def max_slots(self) -> int:
        """K: the most experts that the configured router gives one token in evaluation."""
        return max_slots(self)

    def _require(self, condition: bool, field: str, allowed: str) -> None:
        if not condition:
            raise ValueError(f"{field} = {getattr(self, field)!r}: must be {allowed}")

    def _validate_fields(self) -> None:
        for field in _POSITIVE:
            self._require(0 < (getattr(self, field) or 0) < math.inf, field, "> 0")
        for field in _NOT_NEGATIVE:
            self._require(0 <= getattr(self, field) < math.inf, field, ">= 0")
        self._require(
            self.capacity_factor is None or 0 < self.capacity_factor < math.inf, "capacity_factor", "> 0, or null"
        )
        for field, most in MODEL_SIZES.items():
            self._require((getattr(self, field) or 0) <= most, field, f"<= {most:,}")
        for field in ("dropout", "router_jitter"):
            self._require(0 <= getattr(self, field) < 1, field, "in [0, 1)")
        self._require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            f"a divisor of num_attention_heads ({self.num_attention_heads})",
        )
        self._require(self.head_dim % 2 == 0, "head_dim", "even, for rotary embeddings")
        for field, names in (
            ("router", ROUTERS),
            ("experts_implementation", EXPERTS_IMPLEMENTATIONS),
            ("qk_norm", QK_NORMS),
        ):
            self._require(getattr(self, field) in names, field, f"one of {', '.join(names)}")
        self._require(
            self.max_experts_per_token is None or self.max_experts_per_token > 0,
            "max_experts_per_token",
            "> 0, or null",
        )
        self._require(0 < self.confidence_threshold <= 1, "confidence_threshold", "in (0, 1]")
        self._require(self.tau <= 1, "tau", "in (0, 1]")
        if fault := router_fault(self):
            field, requirement = fault
            raise ValueError(f"{field} = {getattr(self, field)!r}: {requirement}")
