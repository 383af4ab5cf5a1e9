"""Mixed precision: which matrix gets how many bits.

A group is what one node of the graph computes with, so its matrices share a format: the query, key and value
projections of a layer, its experts, its output projection, an embedding. Each group starts with its cheapest format;
then, greedily, the group is widened whose damage, as measured on calibration text, falls most per added byte, until the
targets of the scheme are met by a margin or its size is used up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.steps.schemes import HALF, SCHEMES

SHARED = re.compile(r"(?P<layer>.*\.self_attn)\.[qkv]_proj\.weight$|(?P<experts>.*\.experts)\.(gate_up|down)_proj$")
"""Matrices that share a format: a layer's query, key and value projections, and its FFN experts."""
MATRIX = re.compile(r"(embed_tokens|lm_head|_proj)(\.weight)?$")
"""Parameters that may be rounded."""
BLOCK_SIZES = (32, 16)
"""Tried in this order where none is configured."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a matrix is stored: `bits` of 4 or 8 in blocks with a scale each, or of 16 as float16."""

    bits: int
    block_size: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight and its share of the block's bfloat16 scale."""
        return self.bits if self.bits == HALF else self.bits + 16 / self.block_size


@dataclass(frozen=True, kw_only=True)
class Group:
    """Matrices with one format.

    Attributes:
        name: what they have in common.
        matrices: names of the parameters.
        weights: their number.
        widths: different numbers of inputs that they have; outside the portable graph, blocks divide each.
        experts: they are a layer's FFN experts.
    """

    name: str
    matrices: tuple[str, ...]
    weights: int
    widths: tuple[int, ...]
    experts: bool


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What rounding one group to one format does to the model, all other weights left in float.

    Attributes:
        divergence: Kullback-Leibler divergence of the next token's distribution from the float model's, nats per token.
        routing: share of (token, layer) pairs whose set of experts changes.
    """

    divergence: float
    routing: float


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a scheme aims at, over the whole model.

    Attributes:
        divergence, routing: at most, in the units of `Damage`.
        size: at most, as a share of the parameters' bytes in float32.
    """

    divergence: float
    routing: float
    size: float


def groups_of(model: EnhancedMoEForCausalLM) -> list[Group]:
    """The model's matrices that may be rounded, in the order of its parameters."""
    tied = model.config.tie_word_embeddings
    found: dict[str, list[tuple[str, Tensor]]] = {}
    for name, weight in model.state_dict().items():
        if MATRIX.search(name) and not (tied and name == "lm_head.weight"):
            shared = SHARED.match(name)
            found.setdefault((shared["layer"] or shared["experts"]) if shared else name, []).append((name, weight))
    return [
        Group(
            name=name,
            matrices=tuple(matrix for matrix, _ in members),
            weights=sum(weight.numel() for _, weight in members),
            widths=tuple(sorted({weight.shape[-1] for _, weight in members})),
            experts=members[0][1].dim() == 3,
        )
        for name, members in found.items()
    ]


def formats(group: Group, scheme: str, block_size: int | None, portable: bool = False) -> list[Format]:
    """What a group may be stored in, cheapest first.

    Raises:
        ConfigError: the block size doesn't divide a row, or none does.
    """
    block = _block(group, block_size, portable)
    widths = SCHEMES[scheme].experts if group.experts else SCHEMES[scheme].others
    return [Format(bits=bits, block_size=0 if bits == HALF else block) for bits in widths]


def _block(group: Group, configured: int | None, portable: bool) -> int:
    if portable:
        return configured or BLOCK_SIZES[0]
    fitting = [size for size in (16, 32, 64, 128, 256) if all(width % size == 0 for width in group.widths)]
    if configured in fitting:
        return configured
    widths = " and ".join(map(str, group.widths))
    if configured is None:
        for size in BLOCK_SIZES:
            if size in fitting:
                return size
        raise ConfigError(
            f"{group.name}: no block size divides its {widths} inputs: set quantize.portable = true, or train with"
            " sizes that are multiples of 16"
        )
    remedy = f"must be one of {', '.join(map(str, fitting))}" if fitting else "none does: set quantize.portable = true"
    raise ConfigError(
        f"quantize.block_size = {configured}: doesn't divide the {widths} inputs of {group.name}: {remedy}"
    )


def choose(
    options: Mapping[Group, Sequence[Format]],
    damages: Mapping[tuple[str, Format], Damage],
    targets: Targets,
    other_bytes: int,
    float_bytes: int,
) -> dict[str, Format]:
    """A format per group, by greedy widening; see the module.

    The damage of several groups is estimated from that of each: divergences add up; shares of changed routings add in
    quadrature, as independent errors of the router's logits do, of which a large enough sum changes a choice.

    Args:
        options: formats of each group, cheapest first.
        damages: by group's name and format.
        targets: widening stops when the estimates are at half of each, because they are estimates.
        other_bytes: of the parameters that are in no group, in float32.
        float_bytes: all parameters in float32; `targets.size` is a share of it.
    """
    chosen = dict.fromkeys(options, 0)

    def stored() -> float:
        return other_bytes + sum(group.weights * options[group][at].bits_per_weight / 8 for group, at in chosen.items())

    def loss(group: Group, at: int) -> tuple[float, float]:
        damage = damages[group.name, options[group][at]]
        return damage.divergence / targets.divergence, (damage.routing / targets.routing) ** 2

    while True:
        losses = [loss(group, at) for group, at in chosen.items()]
        if sum(first for first, _ in losses) <= 0.5 and sum(second for _, second in losses) <= 0.25:
            break
        room = targets.size * float_bytes - stored()
        best, best_gain = None, 0.0
        for group, at in chosen.items():
            if at + 1 == len(options[group]):
                continue
            more = (options[group][at + 1].bits_per_weight - options[group][at].bits_per_weight) * group.weights / 8
            gain = (sum(loss(group, at)) - sum(loss(group, at + 1))) / more
            if more <= room and gain > best_gain:
                best, best_gain = group, gain
        if best is None:
            break
        chosen[best] += 1
    return {group.name: options[group][at] for group, at in chosen.items()}
