"""Sensitivity of the model to rounding each group of its matrices, measured on calibration text.

Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import BlockWeights, Stored
from ava_core.quantization.plan import Damage, Format, Group
from ava_core.steps.schemes import HALF

Rounding = Callable[[np.ndarray, Format], Stored]


def as_float(rounded: Stored) -> np.ndarray:
    """The float32 values that a stored matrix stands for."""
    return rounded.dequantize() if isinstance(rounded, BlockWeights) else rounded.astype(np.float32)


@contextmanager
def rounded_weights(model: EnhancedMoEForCausalLM, rounded: Mapping[str, Stored]) -> Iterator[None]:
    """Inside the block the model computes in float with these matrices rounded (fake quantisation)."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].data for name in rounded}
    try:
        for name, value in rounded.items():
            parameters[name].data = torch.from_numpy(as_float(value)).to(before[name].dtype)
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data


@torch.no_grad()
def measure_damages(
    model: EnhancedMoEForCausalLM,
    options: Mapping[Group, Sequence[Format]],
    rounding: Rounding,
    tokens_BS: Tensor,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[tuple[str, Format], Damage]:
    """Damage of each group in each of its formats, the others left in float; that of float16 is taken to be 0.

    Args:
        model: the float model, in evaluation mode.
        options: formats by group.
        rounding: rounds one matrix.
        tokens_BS: calibration text, int64.
        advance: called with the number of formats measured.
    """
    log_probabilities, choices = _run(model, tokens_BS)
    found: dict[tuple[str, Format], Damage] = {}
    parameters = dict(model.named_parameters())
    for group, formats in options.items():
        for format_ in formats:
            if format_.bits == HALF:
                found[group.name, format_] = Damage(divergence=0.0, routing=0.0)
                continue
            weights = {name: rounding(parameters[name].detach().numpy(), format_) for name in group.matrices}
            with rounded_weights(model, weights):
                there, others = _run(model, tokens_BS)
            divergence = (log_probabilities.exp() * (log_probabilities - there)).sum(-1).mean().item()
            same = torch.stack([(a == b).all(-1).float().mean() for a, b in zip(choices, others, strict=True)])
            found[group.name, format_] = Damage(divergence=max(divergence, 0.0), routing=1 - same.mean().item())
            advance(len(found))
    return found


def _run(model: EnhancedMoEForCausalLM, tokens_BS: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Log-probabilities (B, S, V) and choices per layer, bool (T, E)."""
    output = model(tokens_BS, use_cache=False, output_router_logits=True)
    return output.logits.float().log_softmax(-1), output.router_choices
