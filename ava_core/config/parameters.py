"""The parameters of a model from its configuration: names, shapes, counts. Nothing is built, torch isn't imported."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ava_core.config.model import ModelConfig
from ava_core.config.routing import max_slots, num_logits

_HIDDEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Parameter:
    """Attributes:
    name: as in the model; `*` stands for the number of a layer.
    shape: of one copy.
    copies: how many of this name and shape there are: one per layer, or one.
    first: number of the first layer that has one.
    """

    name: str
    shape: tuple[int, ...]
    copies: int = 1
    first: int = 0

    @property
    def names(self) -> list[str]:
        """Names of all copies."""
        return [self.name.replace("*", str(self.first + index)) for index in range(self.copies)]

    @property
    def entries(self) -> int:
        """Number of entries of all copies together."""
        return self.copies * prod(self.shape)

    @property
    def is_hidden(self) -> bool:
        """See `is_hidden_matrix`."""
        return is_hidden_matrix(self.name, len(self.shape))


def is_hidden_matrix(name: str, dimensions: int) -> bool:
    """Whether Muon updates a parameter: by name, for a router is a matrix too and isn't one of them."""
    if dimensions < 2:
        return False
    return name.removesuffix(".weight").endswith(_HIDDEN) or name.startswith("prediction_heads.")


def head_dim(model: ModelConfig) -> int:
    """Width A of one attention head."""
    return model.head_dim or model.hidden_size // model.num_attention_heads


def attention_entries(width: int, heads: int, key_value_heads: int, head_dim: int) -> int:
    """Entries of a layer's query, key, value and output projections."""
    return 2 * width * (heads + key_value_heads) * head_dim


def expert_entries(width: int, inner: int) -> int:
    """Entries of one SwiGLU expert: gate, up and down."""
    return 3 * width * inner


def parameters_of(model: ModelConfig, vocab_size: int) -> list[Parameter]:
    """All parameters; tied embeddings are one."""
    D, F, N = model.hidden_size, model.expert_intermediate_size, model.num_ffn_experts
    A, L, E = head_dim(model), model.num_layers, num_logits(model)
    queries, keys, S = A * model.num_attention_heads, A * model.num_key_value_heads, F * model.num_shared_experts
    C, at = model.num_constant_experts, "model.layers.*."
    found = [
        Parameter("model.embed_tokens.weight", (vocab_size, D)),
        Parameter("model.norm.weight", (D,)),
        Parameter(at + "input_layernorm.weight", (D,), L),
        Parameter(at + "post_attention_layernorm.weight", (D,), L),
        Parameter(at + "self_attn.q_proj.weight", (queries, D), L),
        Parameter(at + "self_attn.k_proj.weight", (keys, D), L),
        Parameter(at + "self_attn.v_proj.weight", (keys, D), L),
        Parameter(at + "self_attn.o_proj.weight", (D, queries), L),
        Parameter(at + "moe.gate.weight", (E, D), L),
        Parameter(at + "moe.experts.gate_up_proj", (N, 2 * F, D), L),
        Parameter(at + "moe.experts.down_proj", (N, D, F), L),
    ]
    if not model.tie_word_embeddings:
        found.append(Parameter("lm_head.weight", (vocab_size, D)))
    if model.qk_norm != "none":
        whole = model.qk_norm == "projection"
        found.append(Parameter(at + "self_attn.q_norm.weight", (queries if whole else A,), L))
        found.append(Parameter(at + "self_attn.k_norm.weight", (keys if whole else A,), L))
    if model.gating_residuals and L > 1:  # the first layer has no logits before it
        found.append(Parameter(at + "moe.gate.residual_weight", (E, E), L - 1, first=1))
    if C:  # the vectors v, and two rows of W_c for each
        found.append(Parameter(at + "moe.zero_computation.constants", (C, D), L))
        found.append(Parameter(at + "moe.zero_computation.mix_weight", (2 * C, D), L))
    if S:
        found.append(Parameter(at + "moe.shared_experts.gate_up_proj.weight", (2 * S, D), L))
        found.append(Parameter(at + "moe.shared_experts.down_proj.weight", (D, S), L))
    return found


def count(parameters: list[Parameter]) -> int:
    """Number of entries of all of them."""
    return sum(parameter.entries for parameter in parameters)


def active_count(model: ModelConfig, vocab_size: int) -> int:
    """Entries that one token passes, at most: of the FFN experts only as many as a token may have."""
    idle = model.num_ffn_experts - min(max_slots(model), model.num_ffn_experts)
    unused = model.num_layers * idle * expert_entries(model.hidden_size, model.expert_intermediate_size)
    return count(parameters_of(model, vocab_size)) - unused
