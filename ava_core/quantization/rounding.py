"""Choosing formats for a model's matrices on calibration text, and rounding them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ava_core.config.quantize import QuantizeConfig, SchemeConfig
from ava_core.data.shards import ShardedSplit
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import Stored
from ava_core.quantization.blockwise import quantize_blocks
from ava_core.quantization.plan import Format, Group, Targets, choose, formats, groups_of
from ava_core.quantization.sensitivity import measure_damages
from ava_core.steps.schemes import HALF, SCHEMES

log = logging.getLogger(__name__)
MAX_LOGITS = 2**25
"""Logits of the calibration text that are held at once, of the float and of a rounded model; bounds its sequences."""


def plan(
    model: EnhancedMoEForCausalLM,
    scheme: str,
    config: QuantizeConfig,
    calibration: ShardedSplit,
    sequence_length: int,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Format]:
    """A format for each group of matrices (see `ava_core.quantization.plan`); none for a scheme that doesn't round.

    Args:
        model: the float model, in evaluation mode.
        scheme: name of a scheme.
        config: the `quantize` section.
        calibration: the training split; evenly spaced sequences of it are read.
        sequence_length: tokens of a calibration sequence.
        advance: called with the number of formats measured.

    Raises:
        ConfigError: the blocks don't fit the model's shapes.
    """
    if not SCHEMES[scheme].rounds:
        return {}
    options = {group: formats(group, scheme, config.block_size, config.portable) for group in groups_of(model)}
    rows = min(config.calibration_sequences, max(1, MAX_LOGITS // (sequence_length * model.config.vocab_size)))
    if not config.calibration_sequences:
        return {group.name: unmeasured(scheme, given) for group, given in options.items()}
    tokens_BS = _sequences(calibration, rows, sequence_length)
    damages = measure_damages(model, options, lambda weight, form: store(weight, form, config), tokens_BS, advance)
    settings: SchemeConfig = getattr(config, scheme)
    float_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        loss = float(model(tokens_BS, labels=tokens_BS, use_cache=False).main_loss)
    targets = Targets(
        divergence=settings.increase_percent / 100 * loss, routing=1 - settings.expert_agreement, size=settings.size
    )
    others = float_bytes - 4 * sum(group.weights for group in options)
    return choose(options, damages, targets, others, float_bytes)


def unmeasured(scheme: str, given: Sequence[Format]) -> Format:
    """Without calibration: the format of the width in the scheme's name, or the next wider one that the group has."""
    return next(form for form in given if form.bits >= SCHEMES[scheme].bits)


def store(weight: np.ndarray, form: Format, config: QuantizeConfig) -> Stored:
    """One matrix in one format."""
    if form.bits == HALF:
        return weight.astype(np.float16)
    return quantize_blocks(weight, form.bits, form.block_size, symmetric=config.symmetric)


def round_model(
    model: EnhancedMoEForCausalLM, chosen: Mapping[str, Format], config: QuantizeConfig
) -> dict[str, Stored]:
    """Every matrix in the format of its group, by parameter."""
    parameters = dict(model.named_parameters())
    return {
        name: store(parameters[name].detach().to(torch.float32).numpy(), chosen[group.name], config)
        for group in groups_of(model)
        if group.name in chosen
        for name in group.matrices
    }


def bits_per_weight(model: EnhancedMoEForCausalLM, chosen: Mapping[str, Format]) -> float:
    """Mean over the matrices, scales included; 32 for those without a format."""
    groups: list[Group] = groups_of(model)
    total = sum(
        group.weights * (chosen[group.name].bits_per_weight if group.name in chosen else 32.0) for group in groups
    )
    return total / sum(group.weights for group in groups)


def _sequences(split: ShardedSplit, rows: int, length: int) -> torch.Tensor:
    """Evenly spaced sequences, (rows, length); shorter if the split is."""
    length = min(length, split.num_tokens)
    starts = np.linspace(0, split.num_tokens - length, rows).astype(np.int64)
    return torch.from_numpy(
        np.stack([np.asarray(split.tokens[start : start + length]) for start in starts]).astype(np.int64)
    )
