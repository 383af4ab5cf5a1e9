"""The same model described in Ava's and in Transformers' configuration; what can't be described is refused.

The balance losses relate by the number of experts: Transformers multiplies sum(f_i P_i) by E (Switch, arXiv
2101.03961, eq. 4), MoE++ does not, so `balance_loss_weight` = E * `router_aux_loss_coef`. For one layer the two are
then equal. For several they are not: Ava averages the loss of each layer, Transformers takes the loss of f and P
averaged over all layers, which is why a collapse in one of them can hide. Transformers adds its loss only when
called with `output_router_logits=True`; the coefficient is carried over either way.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.conversion.context import context_from, context_to, slides_like, window_from
from ava_core.models.conversion.peers import SOURCES, Peer, peer_named
from ava_core.models.conversion.rules import Rule, check


def _is_none(value: Any) -> bool:
    return value is None


def _is_false(value: Any) -> bool:
    return not value


# Of Transformers' models, what ours lacks.
_THEIR_RULES = (
    Rule("is_heterogeneous", _is_false, "False", "all layers have one shape"),
    Rule("hidden_act", lambda value: value == "silu", "'silu'", "the experts are SwiGLU"),
    Rule("attention_bias", _is_false, "False", "projections have no bias"),
    Rule("mlp_bias", _is_false, "False", "the experts have no bias"),
    Rule("attention_dropout", _is_false, "0", "attention weights have no dropout"),
    Rule("clip_qkv", _is_none, "None", "queries, keys and values are not clipped"),
    Rule("mlp_only_layers", _is_false, "[]", "there are no dense layers"),
    Rule("decoder_sparse_step", lambda value: value == 1, "1", "there are no dense layers"),
    Rule("router_jitter_noise", _is_false, "0", "only the router's input is jittered, never the experts'"),
)

# Of ours, what all of Transformers' models lack.
_OUR_RULES = (
    Rule("num_zero_experts", _is_false, "0", "it has no zero-computation experts"),
    Rule("num_copy_experts", _is_false, "0", "it has no zero-computation experts"),
    Rule("num_constant_experts", _is_false, "0", "it has no zero-computation experts"),
    Rule("num_shared_experts", _is_false, "0", "it has no shared experts"),
    Rule("gating_residuals", _is_false, "False", "it has no gating residuals"),
    Rule("router", lambda value: value == "top_k", "'top_k'", "it has no other router"),
    Rule("capacity_factor", _is_none, "None", "its experts have no capacity"),
    Rule("router_jitter", _is_false, "0", "its router has no jitter"),
    Rule("router_z_loss_weight", _is_false, "0", "it has no router z-loss"),
    Rule("router_diversity_weight", _is_false, "0", "it has no diversity loss"),
    Rule("dropout", _is_false, "0", "its blocks have no dropout"),
)

# Same name, same meaning on both sides.
_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def config_from_transformers(config: PreTrainedConfig) -> EnhancedMoEConfig:
    """The configuration of our model that computes what `config`'s does: of a dense one, a mixture of one expert.

    Raises:
        ValueError: it isn't the configuration of one of `SOURCES`, or asks for something that our model lacks.
    """
    peer = peer_named(config.model_type, SOURCES)
    check(config, _THEIR_RULES, "Ava")
    derived_head_dim = config.hidden_size // config.num_attention_heads
    experts = 1 if peer.dense else config.num_experts
    fields = {field: getattr(config, field) for field in _SHARED_FIELDS} | context_from(config)
    return EnhancedMoEConfig(
        **fields,
        **window_from(config, peer),
        head_dim=getattr(config, "head_dim", None) or derived_head_dim,
        qk_norm=peer.qk_norm,
        num_ffn_experts=experts,
        expert_intermediate_size=getattr(config, peer.expert_width_field),
        num_zero_experts=0,
        num_copy_experts=0,
        num_constant_experts=0,
        router="top_k",
        num_experts_per_token=1 if peer.dense else config.num_experts_per_tok,
        normalize_router_weights=peer.normalises_always or config.norm_topk_prob,
        gating_residuals=False,
        tau=1.0,
        balance_loss_weight=0.0 if peer.dense else config.router_aux_loss_coef * experts,
        router_z_loss_weight=0.0,
    )


def config_to_transformers(config: EnhancedMoEConfig, target: str) -> PreTrainedConfig:
    """The configuration of the model of Transformers, "olmoe", "mixtral" or "qwen3_moe", that computes the same.

    Raises:
        ValueError: the target is unknown, or lacks something that the configuration asks for. What only matters in
            training (capacity, jitter, z-loss, dropout) is refused too: switch it off to convert without it.
    """
    peer = peer_named(target)
    check(config, (*_OUR_RULES, *_rules_of(config, peer)), target)
    fields: dict[str, Any] = {field: getattr(config, field) for field in _SHARED_FIELDS}
    fields |= {
        "num_experts": config.num_ffn_experts,
        "num_experts_per_tok": config.num_experts_per_token,
        peer.expert_width_field: config.expert_intermediate_size,
        "router_aux_loss_coef": config.balance_loss_weight / config.num_ffn_experts,
    }
    fields |= context_to(config)
    if config.sliding_window is not None:
        fields |= {"sliding_window": config.sliding_window}
        # The one with a switch; others would keep the word as if it meant something.
        fields |= {"use_sliding_window": True} if hasattr(peer.config_class, "use_sliding_window") else {}
    if not peer.normalises_always:
        fields["norm_topk_prob"] = config.normalize_router_weights
    if not peer.derives_head_dim:
        fields["head_dim"] = config.head_dim
    return peer.config_class(**fields)


def _rules_of(config: EnhancedMoEConfig, peer: Peer) -> list[Rule]:
    """What of ours this one peer lacks."""
    kind = peer.qk_norm
    rules = [Rule("qk_norm", lambda value: value == kind, repr(kind), "it normalises queries and keys in no other way")]
    if config.sliding_window is not None:
        rules.append(slides_like(peer))
    if peer.normalises_always:
        rules.append(Rule("normalize_router_weights", bool, "True", "its router weights always sum to one"))
    if peer.derives_head_dim:
        width = config.hidden_size / config.num_attention_heads
        rules.append(
            Rule(
                "head_dim", lambda value: value == width, f"{width:g}", "it divides hidden_size by the number of heads"
            )
        )
    return rules
