"""How each parameter of our model is made from another checkpoint's tensors, decided by their names and shapes alone.

A recipe's parts are consecutive along the parameter's first axis: of stacked experts there is one part per expert. So
whoever reads tensors from a file holds one part at a time, and whatever doesn't fit is known before any is read.

Experts lie in a checkpoint as Transformers keeps them in memory (stacked), or as published ones have them: a matrix
each for gate, up and down. Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.conversion.upcycling import Upcycling

Shape = tuple[int, ...]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UNUSED = (".rotary_emb.inv_freq",)
"""Endings of what old checkpoints hold and every model computes by itself."""


class Tensors(NamedTuple):
    """A tensor of the checkpoint that a part needs: all of it, or one row of its first axis."""

    name: str
    shape: Shape
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a parameter.

    Attributes:
        needs: what they are made from.
        make: gives them from these tensors, in their order.
    """

    needs: tuple[Tensors, ...]
    make: Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Attributes:
    shape: of the parameter.
    parts: its rows, in their order.
    """

    shape: Shape
    parts: tuple[Part, ...]


class _Experts(NamedTuple):
    """Where the feed-forward networks of one layer lie: one part per expert for each of the two matrices."""

    gate_up: list[Part]
    down: list[Part]


def recipes(
    config: EnhancedMoEConfig,
    wanted: Mapping[str, Shape],
    given: Mapping[str, Shape],
    upcycling: Upcycling | None = None,
) -> dict[str, Recipe]:
    """A recipe for each parameter.

    Args:
        config: of our model; before upcycling, if there is any.
        wanted: shapes of our model's parameters (after upcycling), by name; of tied matrices the embedding alone.
        given: shapes of the checkpoint's tensors, by name.
        upcycling: how a model with one expert becomes one with several.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place in our model; the message names it.
    """
    made = {name: _recipe(name, shape, config, given, upcycling) for name, shape in wanted.items()}
    used = {need.name for recipe in made.values() for part in recipe.parts for need in part.needs}
    for name in sorted(used):
        if name not in given:
            raise ValueError(f"{name}: must be in both models, but is missing")
    for recipe in made.values():
        for need in (need for part in recipe.parts for need in part.needs):
            if given[need.name] != need.shape:
                raise ValueError(f"{need.name} = {given[need.name]}: must be {need.shape}, by the configuration")
    for name in sorted(given.keys() - used):
        replaced = upcycling is not None and (".gate.weight" in name or ".gate.residual_weight" in name)
        tied = name == HEAD and HEAD not in wanted
        if not (name.endswith(UNUSED) or replaced or tied):
            raise ValueError(f"{name} = {given[name]}: must be a parameter that Ava's model has")
    return made


def build(recipe: Recipe, read: Callable[[Tensors], Tensor]) -> Iterator[Tensor]:
    """The parameter's rows, part by part."""
    for part in recipe.parts:
        yield part.make(*(read(need) for need in part.needs))


def _recipe(
    name: str, shape: Shape, config: EnhancedMoEConfig, given: Mapping[str, Shape], upcycling: Upcycling | None
) -> Recipe:
    layer, _, inner = name.partition(".moe.")
    if inner.startswith("experts."):
        experts = _find_experts(layer, config, given)
        matrix = "gate_up" if inner == "experts.gate_up_proj" else "down"
        parts = getattr(experts, matrix)
        return Recipe(shape, tuple(_upcycled(parts[0], name, matrix, upcycling) if upcycling else parts))
    if inner == "gate.weight" and upcycling is not None:
        return Recipe(shape, (Part((), lambda: _fresh_gate(name, shape, config, upcycling)),))
    if inner == "gate.weight" and _is_dense(layer, given):
        return Recipe(shape, (Part((), lambda: torch.zeros(shape)),))  # of one expert: its weight is 1 whatever it says
    source = next(alias for alias in _aliases(name) if alias in given or alias == name)
    return Recipe(shape, (Part((Tensors(source, shape),), _same),))


def _aliases(name: str) -> Iterator[str]:
    """What a parameter of ours is called in checkpoints."""
    layer, inside, inner = name.partition(".moe.")
    if inside:
        yield f"{layer}.mlp.{inner}"
        yield f"{layer}.block_sparse_moe.{inner}"
    yield name


def _is_dense(layer: str, given: Mapping[str, Shape]) -> bool:
    return f"{layer}.mlp.gate_proj.weight" in given


def _find_experts(layer: str, config: EnhancedMoEConfig, given: Mapping[str, Shape]) -> _Experts:
    """The layer's networks in whichever way the checkpoint has them; of none, as the first would be."""
    N, D, F = config.num_ffn_experts, config.hidden_size, config.expert_intermediate_size
    for stacked in (f"{layer}.moe.experts", f"{layer}.mlp.experts", f"{layer}.block_sparse_moe.experts"):
        if f"{stacked}.gate_up_proj" in given:
            gate_up, down = (f"{stacked}.gate_up_proj", (N, 2 * F, D)), (f"{stacked}.down_proj", (N, D, F))
            return _Experts(
                [Part((Tensors(*gate_up, row),), _same) for row in range(N)],
                [Part((Tensors(*down, row),), _same) for row in range(N)],
            )
    if _is_dense(layer, given):
        places = [(f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj"))]
    elif f"{layer}.block_sparse_moe.gate.weight" in given:  # Mixtral, whose w1 is the gate and w3 up
        places = [(f"{layer}.block_sparse_moe.experts.{index}", ("w1", "w3", "w2")) for index in range(N)]
    else:
        names = ("gate_proj", "up_proj", "down_proj")
        places = [(f"{layer}.mlp.experts.{index}", names) for index in range(N)]
    inner, outer = (F, D), (D, F)
    return _Experts(
        [
            Part((Tensors(f"{at}.{gate}.weight", inner), Tensors(f"{at}.{up}.weight", inner)), _stack)
            for at, (gate, up, _) in places
        ],
        [Part((Tensors(f"{at}.{down}.weight", outer),), _same) for at, (_, _, down) in places],
    )


def _upcycled(dense: Part, name: str, matrix: str, upcycling: Upcycling) -> Iterator[Part]:
    """Expert i is segment i % G of copy i // G."""
    for index in range(upcycling.experts):

        def make(*tensors: Tensor, index: int = index) -> Tensor:
            rows = _segment(dense.make(*tensors), matrix, index % upcycling.granularity, upcycling.granularity)
            if not upcycling.noise:
                return rows
            rows = rows.float()
            noise = torch.randn(rows.shape, generator=_generator(upcycling.seed, f"{name}.{index}"))
            return rows + noise * (upcycling.noise * rows.std(correction=0))

        yield Part(dense.needs, make)


def _segment(whole: Tensor, matrix: str, segment: int, granularity: int) -> Tensor:
    """Of `gate_up` (2F, D) or `down` (D, F), what belongs to one of the segments of the hidden layer."""
    if granularity == 1:
        return whole
    if matrix == "gate_up":
        return torch.cat([half.chunk(granularity)[segment] for half in whole.chunk(2)])
    return whole.chunk(granularity, dim=1)[segment].float() * granularity


def _fresh_gate(name: str, shape: Shape, config: EnhancedMoEConfig, upcycling: Upcycling) -> Tensor:
    """A fresh router (E, D), as our models are initialised, with equal rows for the segments of one copy."""
    E, D = shape
    rows = torch.randn(E // upcycling.granularity, D, generator=_generator(upcycling.seed, name))
    return (rows * config.initializer_range).repeat_interleave(upcycling.granularity, dim=0)


def _generator(seed: int, name: str) -> torch.Generator:
    """A stream of its own for each part, so that none depends on the order in which they are made."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _stack(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)
