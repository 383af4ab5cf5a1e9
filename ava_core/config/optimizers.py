"""The optimisers by name, and what is known of one without importing it: its memory, and whether ZeRO may cut it up.

To add an optimiser, add its name and its traits here, and a module of that name in `ava_core.training.optimizers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

OptimizerName = Literal["adamw", "muon", "lion", "adafactor", "sophia", "adamw_8bit", "adamw_schedule_free"]
Shape = Sequence[int]
SMALL_ENTRIES, BLOCK_ENTRIES = 4096, 256
"""Of bitsandbytes: below so many entries it keeps moments in float32; above, a scale in float32 for each block."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Attributes:
    state_entries: float32 values that it keeps for a parameter, beside the master weights, as a function of its shape
        and of whether it is a hidden matrix, which Muon treats apart.
    needs_whole: why it can't train ZeRO's partitions of parameters; None: it can.
    library: a package that it is from and that Ava doesn't bring along; the extra `optimizers` does.
    averages: whether it averages the weights itself, and so needs neither a schedule nor another average.
    """

    state_entries: Callable[[Shape, bool], int]
    needs_whole: str | None = None
    library: str | None = None
    averages: bool = False


def _moments(count: int) -> Callable[[Shape, bool], int]:
    return lambda shape, _: count * prod(shape)


def _rows_and_columns(shape: Shape, _: bool) -> int:
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1] if len(shape) > 1 else prod(shape)


def _eight_bit_moments(shape: Shape, _: bool) -> int:
    """Two moments of a byte per entry, a scale per block, and a table of 256 values for each."""
    entries = prod(shape)
    return 2 * entries if entries < SMALL_ENTRIES else 2 * (-(-entries // 4) + -(-entries // BLOCK_ENTRIES) + 256)


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
    # Moments in 8 bits (arXiv 2110.02861), of large parameters.
    "adamw_8bit": Traits(
        state_entries=_eight_bit_moments,
        needs_whole="adamw_8bit scales blocks of whole parameters, which ZeRO cuts up",
        library="bitsandbytes",
    ),
    # The second moment, and the sequence z that isn't averaged (arXiv 2405.15682).
    "adamw_schedule_free": Traits(
        state_entries=_moments(2),
        needs_whole="adamw_schedule_free averages whole weights, which ZeRO cuts up",
        library="schedulefree",
        averages=True,
    ),
}
