"""Models with their weights, converted one parameter to one parameter. Shapes: see `ava_core.models.shapes`.

Experts are fused alike on both sides since Transformers 5: `gate_up_proj` (N, 2F, D), gate first, and `down_proj`
(N, D, F). So a conversion renames, and never computes: values, types and devices stay as they are, bit for bit. The
network of a dense model's layer becomes one expert, whose weight is 1 whatever its router says.
"""

from __future__ import annotations

import copy
import re
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ava_core.models.causal_lm import EnhancedMoEForCausalLM
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.conversion.configs import config_from_transformers, config_to_transformers
from ava_core.models.conversion.peers import PEERS, SOURCES
from ava_core.models.conversion.recipes import EMBEDDING, HEAD, Recipe, Shape, Tensors, build, recipes
from ava_core.models.conversion.upcycling import Upcycling, upcycled_config

Model = TypeVar("Model", bound=PreTrainedModel)

# Our names to theirs; the first table outside the layers, the second inside `model.layers.N.`.
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
    "moe.gate.weight": "mlp.gate.weight",
    "moe.experts.gate_up_proj": "mlp.experts.gate_up_proj",
    "moe.experts.down_proj": "mlp.experts.down_proj",
}
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")


def from_transformers(model: PreTrainedModel, upcycling: Upcycling | None = None) -> EnhancedMoEForCausalLM:
    """Our model with the weights (copied), types, mode and generation settings of a model of Transformers.

    In float32 the logits are the same. In half precision they are close: ours routes in float32 always.

    Args:
        model: a mixture; a dense model becomes a mixture of one expert,
        upcycling: or one of several, made like this.

    Raises:
        ValueError: the model is none of `SOURCES`, uses a feature that ours lacks, or has parameters that don't
            correspond to ours (adapters, for instance).
    """
    classes = [peer.model_class for peer in SOURCES.values()]
    if type(model) not in classes:
        names = ", ".join(one.__name__ for one in classes)
        raise ValueError(f"type(model) = {type(model).__name__}: must be one of {names}")
    _require_tied(model)
    config = config_from_transformers(model.config)
    target = upcycled_config(config, upcycling) if upcycling else config
    given = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    made = recipes(config, parameter_shapes(target), shapes, upcycling)
    weights = {name: _assemble(one, given) for name, one in made.items()}
    return _finish(_on_meta(EnhancedMoEForCausalLM, target), weights, model)


def parameter_shapes(config: EnhancedMoEConfig) -> dict[str, Shape]:
    """Shapes of our model's parameters by the names that they have in a file; of tied matrices the embedding alone."""
    tensors = _on_meta(EnhancedMoEForCausalLM, config).state_dict()
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not (name == HEAD and config.tie_word_embeddings)
    }


def _assemble(recipe: Recipe, given: dict[str, Tensor]) -> Tensor:
    """The parameter, sharing no memory with what it is made from, on its device and of its type."""

    def read(need: Tensors) -> Tensor:
        tensor = given[need.name].detach()
        return tensor if need.row is None else tensor[need.row]

    like = given[recipe.parts[0].needs[0].name if recipe.parts[0].needs else EMBEDDING]
    rows = [row.to(like) for row in build(recipe, read)]
    return torch.stack(rows) if len(recipe.shape) == 3 else rows[0].clone()


def to_transformers(model: EnhancedMoEForCausalLM, target: str) -> PreTrainedModel:
    """The "olmoe", "mixtral" or "qwen3_moe" model with the weights (copied), types, mode and generation settings.

    Raises:
        ValueError: the target is unknown or lacks a feature that the model uses (see `config_to_transformers`), or
            the parameters don't correspond one to one.
    """
    config = config_to_transformers(model.config, target)
    _require_tied(model)
    theirs = _on_meta(PEERS[target].model_class, config)
    renamed: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        new_name = _rename(name)
        if new_name is None:
            raise ValueError(f"{name} = {tuple(value.shape)}: must be a parameter that {type(theirs).__name__} has")
        renamed[new_name] = value.detach().clone()
    _require_same_parameters(renamed, theirs)
    return _finish(theirs, renamed, model)


def _on_meta(model_class: type[Model], config: PreTrainedConfig) -> Model:
    """The model on the meta device, but for its RoPE module, whose buffers no checkpoint holds."""
    with torch.device("meta"):
        model = model_class(config)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)
    return model


def _require_tied(source: PreTrainedModel) -> None:
    if source.config.tie_word_embeddings and source.lm_head.weight is not source.model.embed_tokens.weight:
        raise ValueError("tie_word_embeddings = True: must be False when lm_head.weight is not the embedding")


def _finish(target: Model, weights: dict[str, Tensor], source: PreTrainedModel) -> Model:
    """Put weights into `target`, which is on the meta device, and what else it has of `source`."""
    tied = {HEAD} if target.config.tie_word_embeddings else set()
    fitted = target.load_state_dict(weights, strict=False, assign=True)
    assert set(fitted.missing_keys) <= tied and not fitted.unexpected_keys
    target.tie_weights()
    target.model.rotary_emb.to(source.device)
    target.generation_config = copy.deepcopy(source.generation_config)
    return target.train(source.training)


def _rename(name: str) -> str | None:
    if (match := _LAYER.fullmatch(name)) is None:
        return _OUTER_NAMES.get(name)
    prefix, inner = match.groups()
    return prefix + _LAYER_NAMES[inner] if inner in _LAYER_NAMES else None


def _require_same_parameters(given: dict[str, Tensor], target: PreTrainedModel) -> None:
    wanted = target.state_dict()
    kind = type(target).__name__
    for name in sorted(given.keys() ^ wanted.keys()):
        have = "given but unknown to" if name in given else "missing for"
        raise ValueError(f"{name}: must be in both models, but is {have} {kind}")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{name} = {tuple(value.shape)}: must be {tuple(wanted[name].shape)} for {kind}")
