"""The models of Transformers that are special cases of ours, and how they differ from one another."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
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
    """

    name: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    qk_norm: str
    normalises_always: bool
    expert_width_field: str
    derives_head_dim: bool


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
        ),
        Peer(
            name="qwen3_moe",
            config_class=Qwen3MoeConfig,
            model_class=Qwen3MoeForCausalLM,
            qk_norm="head",
            normalises_always=False,
            expert_width_field="moe_intermediate_size",
            derives_head_dim=False,
        ),
    )
}


def peer_named(name: str) -> Peer:
    """The peer of that `model_type`.

    Raises:
        ValueError: there is none.
    """
    if name not in PEERS:
        raise ValueError(f"target = {name!r}: must be one of {', '.join(PEERS)}")
    return PEERS[name]
