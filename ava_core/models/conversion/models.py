"""Models with their weights, converted one parameter to one parameter. Shapes: see `ava_core.models.shapes`.

Experts are fused alike on both sides since Transformers 5: `gate_up_proj` (N, 2F, D), gate first, and `down_proj`
(N, D, F). So a conversion renames, and never computes: values, types and devices stay as they are, bit for bit.
"""

from __future__ import annotations

import copy
import re
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ava_core.models.causal_lm import EnhancedMoEForCausalLM
from ava_core.models.conversion.configs import config_from_transformers, config_to_transformers
from ava_core.models.conversion.peers import PEERS

Model = TypeVar("Model", bound=PreTrainedModel)

# Their names to ours; the first table outside the layers, the second inside `model.layers.N.`.
_OUTER_NAMES = {name: name for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")}
_LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.q_proj.weight": "self_attn.q_proj.weight",
    "self_attn.k_proj.weight": "self_attn.k_proj.weight",
    "self_attn.v_proj.weight": "self_attn.v_proj.weight",
    "self_attn.o_proj.weight": "self_attn.o_proj.weight",
    "self_attn.q_norm.weight": "self_attn.q_norm.weight",
    "self_attn.k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "moe.gate.weight",
    "mlp.experts.gate_up_proj": "moe.experts.gate_up_proj",
    "mlp.experts.down_proj": "moe.experts.down_proj",
}
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")


def from_transformers(model: PreTrainedModel) -> EnhancedMoEForCausalLM:
    """Our model with the weights (copied), types, mode and generation settings of a model of Transformers.

    In float32 the logits are the same. In half precision they are close: ours routes in float32 always.

    Raises:
        ValueError: the model is none of `PEERS`, uses a feature that ours lacks, or has parameters that don't
            correspond one to one (adapters, for instance).
    """
    classes = [peer.model_class for peer in PEERS.values()]
    if type(model) not in classes:
        names = ", ".join(one.__name__ for one in classes)
        raise ValueError(f"type(model) = {type(model).__name__}: must be one of {names}")
    config = config_from_transformers(model.config)
    target = _on_meta(EnhancedMoEForCausalLM, config)
    return _transplant(model, target, _OUTER_NAMES, _LAYER_NAMES)


def to_transformers(model: EnhancedMoEForCausalLM, target: str) -> PreTrainedModel:
    """The "olmoe", "mixtral" or "qwen3_moe" model with the weights (copied), types, mode and generation settings.

    Raises:
        ValueError: the target is unknown or lacks a feature that the model uses (see `config_to_transformers`), or
            the parameters don't correspond one to one.
    """
    config = config_to_transformers(model.config, target)
    theirs = _on_meta(PEERS[target].model_class, config)
    outer, layer = ({ours: name for name, ours in table.items()} for table in (_OUTER_NAMES, _LAYER_NAMES))
    return _transplant(model, theirs, outer, layer)


def _on_meta(model_class: type[Model], config: PreTrainedConfig) -> Model:
    """The model on the meta device, but for its RoPE module, whose buffers no checkpoint holds."""
    with torch.device("meta"):
        model = model_class(config)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)
    return model


def _transplant(
    source: PreTrainedModel, target: Model, outer_names: dict[str, str], layer_names: dict[str, str]
) -> Model:
    """Give `target`, which is on the meta device, a copy of every parameter of `source` under its new name."""
    if source.config.tie_word_embeddings and source.lm_head.weight is not source.model.embed_tokens.weight:
        raise ValueError("tie_word_embeddings = True: must be False when lm_head.weight is not the embedding")
    renamed: dict[str, Tensor] = {}
    for name, value in source.state_dict().items():
        new_name = _rename(name, outer_names, layer_names)
        if new_name is None:
            raise ValueError(f"{name} = {tuple(value.shape)}: must be a parameter that {type(target).__name__} has")
        renamed[new_name] = value.detach().clone()
    _require_same_parameters(renamed, target)
    target.load_state_dict(renamed, strict=True, assign=True)
    target.tie_weights()
    target.model.rotary_emb.to(source.device)
    target.generation_config = copy.deepcopy(source.generation_config)
    return target.train(source.training)


def _rename(name: str, outer_names: dict[str, str], layer_names: dict[str, str]) -> str | None:
    if (match := _LAYER.fullmatch(name)) is None:
        return outer_names.get(name)
    prefix, inner = match.groups()
    return prefix + layer_names[inner] if inner in layer_names else None


def _require_same_parameters(given: dict[str, Tensor], target: PreTrainedModel) -> None:
    wanted = target.state_dict()
    kind = type(target).__name__
    for name in sorted(given.keys() ^ wanted.keys()):
        have = "given but unknown to" if name in given else "missing for"
        raise ValueError(f"{name}: must be in both models, but is {have} {kind}")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{name} = {tuple(value.shape)}: must be {tuple(wanted[name].shape)} for {kind}")
