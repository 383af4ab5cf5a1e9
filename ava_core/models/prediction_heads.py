"""Multi-token prediction: heads for further tokens on the trunk's hidden states, in training only. Shapes: `shapes`.

They are trained with the model and are no part of it: attached before the optimiser is built, detached before the
model is counted, saved or converted. While attached they are `model.prediction_heads`, so `parameters()` has them, and
`save_pretrained` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ava_core.models.linear import Linear

NAME = "prediction_heads"


class PredictionHead(nn.Module):
    """h + SiLU(W h): Medusa's head (arXiv 2401.10774, section 2.1.1) before the shared unembedding.

    W starts at zero, as there: at first the head predicts what the trunk does, and attaching it draws no random number.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.proj = Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.proj.weight)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        return hidden_BSD + F.silu(self.proj(hidden_BSD))


class PredictionHeads(nn.Module):
    """`depth` heads side by side on one trunk (arXiv 2404.19737, figure 1; there each is a layer of attention)."""

    def __init__(self, hidden_size: int, depth: int):
        super().__init__()
        self.heads = nn.ModuleList([PredictionHead(hidden_size) for _ in range(depth)])

    def forward(self, hidden_BSD: Tensor) -> tuple[Tensor, ...]:
        """(B, S, D) of each head, from the trunk's hidden states after its last norm."""
        return tuple(head(hidden_BSD) for head in self.heads)


class _Model(Protocol):
    """Of `EnhancedMoEForCausalLM`, which has such heads, what attaching and detaching them touches."""

    config: Any
    lm_head: Linear
    training: bool
    prediction_heads: PredictionHeads | None
    _keys_to_ignore_on_save: Any


def attach_prediction_heads(model: _Model, depth: int) -> PredictionHeads:
    """Give `model` fresh heads, of the type and on the device of its output head; those it had are gone.

    Raises:
        ValueError: depth < 1.
    """
    if depth < 1:
        raise ValueError(f"depth = {depth}: must be >= 1 prediction head")
    detach_prediction_heads(model)
    weight = model.lm_head.weight
    with torch.random.fork_rng(devices=[]):  # layers draw weights when they are built, before they are set to zero
        heads = PredictionHeads(model.config.hidden_size, depth)
    heads.to(device=weight.device, dtype=weight.dtype)
    model.prediction_heads = heads.train(model.training)
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *_keys(heads)}
    return heads


def detach_prediction_heads(model: _Model) -> PredictionHeads | None:
    """Take the heads off and return them; None if there were none."""
    heads = model.prediction_heads
    model.prediction_heads = None
    if heads is not None:
        model._keys_to_ignore_on_save = set(model._keys_to_ignore_on_save or ()) - set(_keys(heads))
    return heads


def _keys(heads: PredictionHeads) -> Iterator[str]:
    return (f"{NAME}.{name}" for name in heads.state_dict())
