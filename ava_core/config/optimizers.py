"""The optimisers by name, and what is known of one without importing it: its memory, and whether ZeRO may cut it up.

To add an optimiser, add its name and its traits here, and a module of that name in `ava_core.training.optimizers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

OptimizerName = Literal["adamw", "muon", "lion", "adafactor", "sophia"]
Shape = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Attributes:
    state_entries: float32 values that it keeps for a parameter, beside the master weights, as a function of its shape
        and of whether it is a hidden matrix, which Muon treats apart.
    needs_whole: why it can't train ZeRO's partitions of parameters; None: it can.
    """

    state_entries: Callable[[Shape, bool], int]
    needs_whole: str | None = None


def _moments(count: int) -> Callable[[Shape, bool], int]:
    return lambda shape, _: count * prod(shape)


def _rows_and_columns(shape: Shape, _: bool) -> int:
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)


OPTIMIZERS: dict[OptimizerName, Traits] = {
    "adamw": Traits(state_entries=_moments(2)),
    # Momentum alone of what it orthogonalises; AdamW's moments of the rest.
    "muon": Traits(state_entries=lambda shape, hidden: prod(shape) * (1 if hidden else 2)),
    "lion": Traits(state_entries=_moments(1)),
    # A mean per row and one per column of each matrix (arXiv 1804.04235), all of vectors.
    "adafactor": Traits(
        state_entries=_rows_and_columns, needs_whole="adafactor factors whole matrices, which ZeRO cuts up"
    ),
    # Momentum and curvature.
    "sophia": Traits(state_entries=_moments(2), needs_whole="sophia's second backward pass needs whole gradients"),
}
