"""Which parameter gets what: one rule for all optimisers.

A parameter is *hidden* if it is a weight matrix (or a stack of them) inside a decoder layer: attention and
expert projections. Embedding, head, router, norms, biases and the constants of constant experts aren't.
"""

from __future__ import annotations

from torch import nn

_HIDDEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon should update this parameter: by name, for a router is a matrix too and isn't one of them."""
    return parameter.ndim >= 2 and name.removesuffix(".weight").endswith(_HIDDEN)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay pulls matrices towards zero; norms, biases and constant vectors are left alone."""
    return parameter.ndim >= 2 and not name.endswith(("constants", "residual_weight", "norm.weight"))
