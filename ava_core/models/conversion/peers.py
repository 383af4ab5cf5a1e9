"""The models of Transformers that are special cases of ours, and how they differ from one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What a model of Transformers can do.

    Attributes:
        name: its `model_type`.
        qk_norm: the one kind that it has, in the words of `EnhancedMoEConfig.qk_norm`.
        normalises_always: it rescales the chosen router weights to sum to one, and has no switch (`norm_topk_prob`).
        expert_width_field: its name for the width of an expert's hidden layer.
        derives_head_dim: its heads are always hidden_size / num_attention_heads wide.
        slides: its layers can attend in a sliding window: all or none of them, where nothing says it for each layer.
        dense: it has one feed-forward network per layer, which is a mixture of one expert.
    """

    name: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    qk_norm: str
    normalises_always: bool
    expert_width_field: str
    derives_head_dim: bool
    slides: bool = False
    dense: bool = False


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name="olmoe",
            config_class=OlmoeConfig,
            model_class=OlmoeForCausalLM,
            qk_norm="projection",
            normalises_always=False,
            expert_width_field="intermediate_size",
            derives_head_dim=True,
        ),
        Peer(
            name="mixtral",
            config_class=MixtralConfig,
            model_class=MixtralForCausalLM,
            qk_norm="none",
            normalises_always=True,
            expert_width_field="intermediate_size",
            derives_head_dim=False,
            slides=True,
        ),
        Peer(
            name="qwen3_moe",
            config_class=Qwen3MoeConfig,
            model_class=Qwen3MoeForCausalLM,
            qk_norm="head",
            normalises_always=False,
            expert_width_field="moe_intermediate_size",
            derives_head_dim=False,
            slides=True,
        ),
    )
}
"""Mixtures, which convert both ways."""
DENSE_PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name="llama",
            config_class=LlamaConfig,
            model_class=LlamaForCausalLM,
            qk_norm="none",
            normalises_always=True,
            expert_width_field="intermediate_size",
            derives_head_dim=False,
            dense=True,
        ),
        Peer(
            name="qwen3",
            config_class=Qwen3Config,
            model_class=Qwen3ForCausalLM,
            qk_norm="head",
            normalises_always=True,
            expert_width_field="intermediate_size",
            derives_head_dim=False,
            slides=True,
            dense=True,
        ),
    )
}
"""Dense models, which convert to ours: as mixtures of one expert, or by sparse upcycling."""
SOURCES = {**PEERS, **DENSE_PEERS}
"""All models that convert to ours."""


def peer_named(name: str, among: Mapping[str, Peer] = PEERS) -> Peer:
    """The peer of that `model_type`.

    Raises:
        ValueError: there is none.
    """
    if name not in among:
        raise ValueError(f"target = {name!r}: must be one of {', '.join(among)}")
    return among[name]
