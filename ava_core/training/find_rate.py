"""The learning-rate range test: train with a rate that grows from step to step, and see where the loss falls fastest.

As in arXiv 1506.01186, section 3.3, with the exponential sweep and the stop of fastai's `lr_find`. All groups grow
together: a multiple of their peak rates is what is searched for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training.batch import Batch

SMOOTHING = 0.9
"""Share of the running mean that each step keeps; its start at zero is corrected for."""
DIVERGED = 2.0
"""The sweep ends when the smoothed loss is so many times its minimum."""
LEAST_STEPS = 10
"""Steps of the shortest sweep."""
FILE_NAME = "learning_rate"
"""Of the written files, without their endings."""


class Engine(Protocol):
    """The part of `TrainingEngine` that the search needs."""

    config: TrainConfig
    optimizer: Optimizer

    def accumulate(self, batch: Batch) -> dict[str, float]: ...
    def update(self, limit: float) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """Attributes:
    rates: `train.learning_rate` of each step that was made, ascending.
    losses: training loss of the step's batch before its update, in nats per token.
    smoothed: their running mean.
    suggestion: a tenth of the rate at which the smoothed loss was least; as a rule the best peak that is safe.
    steepest: the rate at which the smoothed loss fell fastest, per factor of the rate.
    multiple: the suggestion as a multiple of the configured rate, by which all groups' rates were multiplied.
    settings: what to write into the configuration, by name.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    steepest: float
    multiple: float
    settings: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write learning_rate.json and learning_rate.png; all bytes follow from the figures alone."""
        record: dict[str, Any] = {
            "suggestion": self.suggestion,
            "suggestion_is": "a tenth of the rate at which the smoothed loss was least",
            "steepest": self.steepest,
            "multiple": self.multiple,
            "settings": self.settings,
            "rates": self.rates,
            "losses": self.losses,
            "smoothed": self.smoothed,
        }
        (folder / f"{FILE_NAME}.json").write_text(json.dumps(record, indent=2) + "\n")
        plot_search(self, folder / f"{FILE_NAME}.png")


def find_rate(
    engine: Engine, batches: Iterable[Batch], first: float = 1e-3, last: float = 100.0, steps: int = 100
) -> RateSearch:
    """Sweep the rates of all groups from `first` to `last` times what they are now, and suggest one.

    It ends early when the loss diverges. Afterwards the engine's weights and optimiser are unusable: build
    another engine. Nothing is written; see `RateSearch.write`.

    Args:
        engine: fresh, its groups' rates at their peaks.
        batches: at least `steps` of them, this rank's.
        first, last: multiples of the peaks, in geometric progression from step to step.
        steps: of the whole sweep.

    Raises:
        ValueError: no ascending range, or too few steps.
        AvaError: the loss diverged before `LEAST_STEPS` steps.
    """
    if not 0 < first < last:
        raise ValueError(f"first = {first}, last = {last}: must be 0 < first < last")
    if steps < LEAST_STEPS:
        raise ValueError(f"steps = {steps}: must be >= {LEAST_STEPS}")
    groups = engine.optimizer.param_groups
    peaks = [group.get("peak_lr", group["lr"]) for group in groups]
    limit = engine.config.gradient_clip or math.inf
    multiples: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    for step, batch in zip(range(steps), batches, strict=False):
        multiple = first * (last / first) ** (step / (steps - 1))
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * multiple
        loss = _loss(engine, batch)
        if not math.isfinite(loss):
            break
        multiples.append(multiple)
        losses.append(loss)
        smoothed.append(_smooth(losses))
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
        engine.update(limit)
    return _search(engine.config, multiples, losses, smoothed)


def _loss(engine: Engine, batch: Batch) -> float:
    try:
        return engine.accumulate(batch)["train_loss"]
    except NonFiniteError:
        return math.nan


def _smooth(losses: list[float]) -> float:
    """Running mean of all losses so far: those that lie further back count less."""
    weights = [SMOOTHING**age for age in range(len(losses))]
    return math.fsum(w * loss for w, loss in zip(weights, reversed(losses), strict=True)) / math.fsum(weights)


def _search(config: TrainConfig, multiples: list[float], losses: list[float], smoothed: list[float]) -> RateSearch:
    if len(losses) < LEAST_STEPS:
        rate = config.learning_rate * multiples[-1] if multiples else math.nan
        raise AvaError(
            f"learning-rate search: ended after {len(losses)} steps at train.learning_rate = {rate:g}: needs"
            f" {LEAST_STEPS} before the loss diverges: lower train.learning_rate"
        )
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    # Equal factors from step to step: the steepest fall per step is the steepest per factor.
    falls = [before - after for before, after in pairwise(smoothed)][: max(1, lowest)]
    steepest = max(range(len(falls)), key=falls.__getitem__)
    multiple = multiples[lowest] / 10
    settings = {"train.learning_rate": config.learning_rate * multiple}
    if config.optimizer == "muon":
        settings["train.adam_learning_rate"] = config.adam_learning_rate * multiple
    return RateSearch(
        rates=[config.learning_rate * m for m in multiples],
        losses=losses,
        smoothed=smoothed,
        suggestion=config.learning_rate * multiple,
        steepest=config.learning_rate * multiples[steepest],
        multiple=multiple,
        settings=settings,
    )


def plot_search(search: RateSearch, path: Path) -> None:
    """Loss over rate as a PNG without a date in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(search.rates, search.losses, linewidth=1, alpha=0.4, label="training")
    axes.plot(search.rates, search.smoothed, label="smoothed")
    axes.axvline(search.suggestion, linestyle="--", color="black", linewidth=1, label=f"{search.suggestion:.2g}")
    axes.set(xscale="log", xlabel="train.learning_rate", ylabel="nats per token", title="Learning-rate search")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
