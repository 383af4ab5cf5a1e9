"""Learning-rate schedules: pure functions from a step to a factor of the base learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("cosine", "linear", "constant")


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up: 1/n, 2/n, ... at steps 0, 1, ...; 1 from step n - 1 on. Step 0 already learns."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """0 at the end of the warm-up, 1 at `total_steps`."""
    return min(1.0, max(0.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def cosine(step: int, total_steps: int, warmup_steps: int = 0, minimum: float = 0.0) -> float:
    """Warm-up, then half a cosine from 1 to `minimum` (arXiv 1608.03983, eq. 5, without restarts)."""
    decay = 0.5 * (1 + math.cos(math.pi * _progress(step, total_steps, warmup_steps)))
    return warmup_factor(step, warmup_steps) * (minimum + (1 - minimum) * decay)


def linear(step: int, total_steps: int, warmup_steps: int = 0, minimum: float = 0.0) -> float:
    """Warm-up, then a straight line from 1 to `minimum`."""
    decay = 1 - _progress(step, total_steps, warmup_steps)
    return warmup_factor(step, warmup_steps) * (minimum + (1 - minimum) * decay)


def constant(step: int, total_steps: int, warmup_steps: int = 0, minimum: float = 0.0) -> float:
    """Warm-up, then 1 for ever."""
    return warmup_factor(step, warmup_steps)


def build_schedule(name: str, total_steps: int, warmup_steps: int = 0, minimum: float = 0.0) -> Callable[[int], float]:
    """The factor of each step (0 for the first) as a function of the step alone.

    Args:
        name: "cosine", "linear" or "constant".
        total_steps: optimiser steps of the whole run; the factor is `minimum` from there on.
        warmup_steps: steps of linear warm-up, part of `total_steps`.
        minimum: factor at the end, in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """
    functions = {"cosine": cosine, "linear": linear, "constant": constant}
    if name not in functions:
        raise ValueError(f"schedule = {name!r}: must be one of {', '.join(SCHEDULES)}")
    if total_steps < 1:
        raise ValueError(f"total_steps = {total_steps}: must be >= 1")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps = {warmup_steps}: must be between 0 and total_steps ({total_steps})")
    if not 0 <= minimum <= 1:
        raise ValueError(f"minimum = {minimum}: must be in [0, 1]")
    function = functions[name]
    return lambda step: function(step, total_steps, warmup_steps, minimum)


def build_scheduler(optimizer: Optimizer, schedule: Callable[[int], float]) -> LambdaLR:
    """Scale the learning rate of every parameter group by `schedule(step)`; step it after each update."""
    return LambdaLR(optimizer, schedule)
