"""Learning-rate schedules: pure functions from the progress of a run to a factor of each group's peak rate.

A run is done at progress 1: when it has made its steps, used its time or seen its tokens, whichever comes first. So a
run with a budget of time ends its decay in time. All schedules warm up over a number of steps before they do what their
name says.

A branch of a `wsd` run can start its decay from any checkpoint of the stable phase, for the factor there depends on
nothing: resume a copy of the run's folder with fewer `train.steps`. From a checkpoint at step s, steps = s / (1 -
decay_share) decays at once, over the last decay_share of those steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from ava_core.config.train import ScheduleName, TrainConfig, WarmupName

RISE_SHARE = 0.3
"""Share of one cycle, after warm-up, that goes up (as in fastai and PyTorch)."""
RISE_FROM = 0.04
"""Factor from which one cycle goes up: a 25th of the peak (as in fastai and PyTorch)."""
EXPONENTIAL_FROM = 0.01
"""Factor that exponential warm-up grows from; a step before the first one would have it."""

WARMUPS: dict[WarmupName, Callable[[float], float]] = {
    "linear": lambda share: share,
    "cosine": lambda share: 0.5 * (1 - math.cos(math.pi * share)),
    "exponential": lambda share: EXPONENTIAL_FROM ** (1 - share),
    "sqrt": math.sqrt,
    "none": lambda _: 1.0,
}
"""Each a factor of what the schedule says, from the share of the warm-up that is done with this step, in (0, 1]."""


def warmup_factor(step: int, warmup_steps: int, shape: WarmupName = "linear") -> float:
    """Of n steps, 1/n, 2/n, ... are done at steps 0, 1, ...; 1 from step n - 1 on. Step 0 already learns."""
    return WARMUPS[shape]((step + 1) / warmup_steps) if step + 1 < warmup_steps else 1.0


def cosine(position: float, minimum: float) -> float:
    """Half a cosine from 1 to `minimum` (arXiv 1608.03983, eq. 5, without restarts); `position` in [0, 1]."""
    return minimum + (1 - minimum) * (0.5 * (1 + math.cos(math.pi * position)))


def linear(position: float, minimum: float) -> float:
    """A straight line from 1 to `minimum`; `position` in [0, 1]."""
    return minimum + (1 - minimum) * (1 - position)


def one_cycle(position: float, minimum: float) -> float:
    """Up to 1 in a straight line, then down to `minimum` (arXiv 1708.07120, section 4); `position` in [0, 1]."""
    if position < RISE_SHARE:
        return RISE_FROM + (1 - RISE_FROM) * position / RISE_SHARE
    return linear((position - RISE_SHARE) / (1 - RISE_SHARE), minimum)


def warmup_stable_decay(progress: float, minimum: float, decay_share: float) -> float:
    """1, then over the last `decay_share` of the run a straight line to `minimum` (arXiv 2404.06395, section 4).

    `progress` is the share of the whole run, warm-up included.
    """
    if progress <= 1 - decay_share:
        return 1.0
    return linear(1 - (1 - progress) / decay_share, minimum)


def polynomial(position: float, minimum: float, power: float) -> float:
    """From 1 to `minimum` as (1 - position)^power; `position` in [0, 1]."""
    return minimum + (1 - minimum) * (1 - position) ** power


def cosine_restarts(steps: float, minimum: float, period: int, multiplier: float, decay: float) -> float:
    """Half a cosine from its peak to `minimum`, again and again (SGDR, arXiv 1608.03983, eq. 5 and section 3).

    The i-th period, from 0, is `period` x `multiplier`^i steps long and begins at `decay`^i, which is not in the paper.

    Args:
        steps: since warm-up.
        minimum: the least factor, also of a peak.
        period, multiplier, decay: as above.
    """
    if multiplier == 1:
        restarts, within = divmod(steps, period)
        length = float(period)
    else:
        restarts, within, length = 0, steps, float(period)
        while within >= length:
            restarts, within, length = restarts + 1, within - length, length * multiplier
    peak = max(minimum, decay**restarts)
    return minimum + (peak - minimum) * (0.5 * (1 + math.cos(math.pi * within / length)))


def inverse_sqrt(steps: float, minimum: float, warmup_steps: int) -> float:
    """sqrt(w / (w + steps)) after w steps of warm-up, not less than `minimum` (arXiv 1706.03762, eq. 3)."""
    return max(minimum, math.sqrt(warmup_steps / (warmup_steps + steps)))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a run is.

    Attributes:
        position: share of what follows the warm-up that is done, in [0, 1].
        progress: share of the whole run, in [0, 1].
        steps: since warm-up; a whole number unless a budget of time or tokens is ahead of the steps.
    """

    position: float
    progress: float
    steps: float


SCHEDULES: dict[ScheduleName, Callable[[Moment, TrainConfig], float]] = {
    "cosine": lambda now, config: cosine(now.position, config.final_learning_rate_ratio),
    "linear": lambda now, config: linear(now.position, config.final_learning_rate_ratio),
    "constant": lambda *_: 1.0,
    "one_cycle": lambda now, config: one_cycle(now.position, config.final_learning_rate_ratio),
    "wsd": lambda now, config: warmup_stable_decay(now.progress, config.final_learning_rate_ratio, config.decay_share),
    "plateau": lambda *_: 1.0,  # what lowers it are evaluations: `RateSchedule.after_evaluation`
    "cosine_restarts": lambda now, config: cosine_restarts(
        now.steps,
        config.final_learning_rate_ratio,
        config.restart_period,
        config.restart_multiplier,
        config.restart_decay,
    ),
    "polynomial": lambda now, config: polynomial(now.position, config.final_learning_rate_ratio, config.decay_power),
    "inverse_sqrt": lambda now, config: inverse_sqrt(now.steps, config.final_learning_rate_ratio, config.warmup_length),
}
"""Each a factor of the peak."""


def rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Factor of the peak rate at `step` (0 for the first), of every schedule but `plateau`'s part of evaluations.

    Args:
        config: `schedule`, `steps`, warm-up, and what the schedule's shape depends on.
        step: updates made so far.
        progress: share of the whole run that is done, in [0, 1]; at least step / steps counts.
    """
    # In steps, for where no budget is ahead of them the result must not depend on rounded shares.
    done = progress * config.steps if progress > step / config.steps else step
    warmup = config.warmup_length
    since = min(max(0, done - warmup), config.steps - warmup)
    position = min(1.0, since / max(1, config.steps - warmup))
    now = Moment(position=position, progress=min(1.0, done / config.steps), steps=since)
    return warmup_factor(step, warmup, config.warmup_shape) * SCHEDULES[config.schedule](now, config)


class RateSchedule:
    """Sets the learning rates of an optimiser's groups, each from its own peak.

    Args:
        optimizer: whose groups' rates are the peaks now; each group remembers its own as `peak_lr`.
        config: the training section.
    """

    def __init__(self, optimizer: Optimizer, config: TrainConfig) -> None:
        self.optimizer, self.config = optimizer, config
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        for group, peak in zip(optimizer.param_groups, self.peaks, strict=True):
            group["peak_lr"] = peak
        self.factor = 1.0
        """Of all peaks, at the present step."""
        self.rewind_factor = 1.0
        self.plateau_factor = 1.0
        self.best: float | None = None
        self.evaluations_since_best = 0

    def set(self, step: int, progress: float) -> float:
        """Set all groups' rates for `step` (0 for the first) and return the first group's; see `rate_factor`."""
        self.factor = factor = rate_factor(self.config, step, progress) * self.plateau_factor * self.rewind_factor
        # A restored optimiser has brought the groups of the saved run: the configuration's peaks count.
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["peak_lr"] = peak
            group["lr"] = peak * factor
        return self.peaks[0] * factor

    def after_evaluation(self, validation_loss: float) -> None:
        """`plateau`: lower the rate after `plateau_patience` evaluations in a row without a new lowest loss."""
        if self.config.schedule != "plateau":
            return
        if self.best is None or validation_loss < self.best:
            self.best, self.evaluations_since_best = validation_loss, 0
            return
        self.evaluations_since_best += 1
        if self.evaluations_since_best >= self.config.plateau_patience:
            lowered = self.plateau_factor * self.config.plateau_factor
            self.plateau_factor = max(self.config.final_learning_rate_ratio, lowered)
            self.evaluations_since_best = 0

    def lower(self, factor: float) -> None:
        """Multiply all later rates by `factor`: what a rewind does."""
        self.rewind_factor *= factor

    def state_dict(self) -> dict[str, Any]:
        """What the run so far has changed."""
        return {
            "rewind_factor": self.rewind_factor,
            "plateau_factor": self.plateau_factor,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rewind_factor, self.plateau_factor = state["rewind_factor"], state["plateau_factor"]
        self.best, self.evaluations_since_best = state["best"], state["evaluations_since_best"]
