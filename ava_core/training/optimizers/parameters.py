"""Which parameter gets what: one rule for all optimisers.

A parameter is *hidden* if it is a weight matrix (or a stack of them) inside a decoder layer or an extra prediction
head: attention and expert projections. Embedding, head, router, norms, biases and the constants of constant experts
aren't.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ava_core.config.parameters import is_hidden_matrix
from ava_core.config.patterns import layer_of, rate_multiple
from ava_core.config.train import TrainConfig


def is_embedding(name: str) -> bool:
    """Whether this is the embedding or the output head, which may be one."""
    return not {"embed_tokens", "lm_head"}.isdisjoint(name.split("."))


def is_gate(name: str) -> bool:
    """Whether this is a parameter of a router's gate."""
    return "gate" in name.split(".")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay pulls matrices towards zero; norms, biases and constant vectors are left alone."""
    return parameter.ndim >= 2 and not name.endswith(("constants", "residual_weight", "norm.weight"))


def peak_rate(name: str, parameter: nn.Parameter, config: TrainConfig) -> float:
    """The learning rate that a schedule scales."""
    rate = config.learning_rate
    if config.optimizer == "muon" and not is_hidden_matrix(name, parameter.ndim):
        rate = config.adam_learning_rate
    if is_embedding(name):
        return rate * config.embedding_learning_rate_ratio
    return rate * config.router_learning_rate_ratio if is_gate(name) else rate


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `model`, each exactly once, tied ones too, in groups that are treated alike.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, and for Muon `algorithm`: "muon" or "adamw".
    """
    groups: dict[tuple[str, bool, float], dict[str, Any]] = {}
    layers = {layer for name, _ in model.named_parameters() if (layer := layer_of(name)) is not None}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        algorithm = "muon" if config.optimizer == "muon" and is_hidden_matrix(name, parameter.ndim) else "adamw"
        decayed = is_decayed(name, parameter)
        rate = peak_rate(name, parameter, config) * rate_multiple(name, len(layers), config)
        group = groups.setdefault((algorithm, decayed, rate), {"params": []})
        group["params"].append(parameter)
        group["lr"], group["weight_decay"] = rate, config.weight_decay if decayed else 0.0
        if config.optimizer == "muon":
            group["algorithm"] = algorithm
    return list(groups.values())
