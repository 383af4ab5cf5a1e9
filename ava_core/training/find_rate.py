"""The learning-rate range test: train with a rate that grows from step to step, and see where the loss falls fastest.

As in arXiv 1506.01186, section 3.3, with the exponential sweep and the stop of fastai's `lr_find`. All groups grow
together: a multiple of their peak rates is what is searched for. Which rate of the curve is the one, people decide by
different criteria: `CRITERIA`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
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
FACTOR = 10
"""What the rate of the least loss, and the last one before divergence, are divided by."""
FILE_NAME = "learning_rate"
"""Of the written files, without their endings."""


class Engine(Protocol):
    """The part of `TrainingEngine` that the search needs."""

    config: TrainConfig
    optimizer: Optimizer

    def accumulate(self, batch: Batch) -> dict[str, float]: ...
    def update(self, limit: float) -> float | None: ...


def _minimum(smoothed: list[float]) -> tuple[int, float]:
    return min(range(len(smoothed)), key=smoothed.__getitem__), FACTOR


def _steepest(smoothed: list[float]) -> tuple[int, float]:
    # Equal factors from step to step: the steepest fall per step is the steepest per factor.
    falls = [before - after for before, after in pairwise(smoothed)][: max(1, _minimum(smoothed)[0])]
    return max(range(len(falls)), key=falls.__getitem__), 1


def _valley(smoothed: list[float]) -> tuple[int, float]:
    """Two thirds along the longest falling subsequence, as fastai's `valley`."""
    length, before = [1] * len(smoothed), [-1] * len(smoothed)
    for i, loss in enumerate(smoothed):
        for j in range(i):
            if smoothed[j] > loss and length[j] + 1 > length[i]:
                length[i], before[i] = length[j] + 1, j
    at = max(range(len(smoothed)), key=length.__getitem__)
    falling = [at]
    while before[falling[-1]] >= 0:
        falling.append(before[falling[-1]])
    falling.reverse()
    return falling[min(len(falling) - 1, 2 * len(falling) // 3)], 1


def _divergence(smoothed: list[float]) -> tuple[int, float]:
    """The last step after which the loss was still no higher than the first one."""
    return max(i for i, loss in enumerate(smoothed) if loss <= smoothed[0]), FACTOR


CRITERIA: dict[str, tuple[str, Callable[[list[float]], tuple[int, float]]]] = {
    "minimum": (f"rate of the least smoothed loss, divided by {FACTOR}", _minimum),
    "steepest": ("rate at which the smoothed loss falls fastest, per factor of the rate", _steepest),
    "valley": ("two thirds along the longest fall of the smoothed loss (fastai)", _valley),
    "divergence": (f"last rate whose smoothed loss isn't above the first one, divided by {FACTOR}", _divergence),
}
"""By name: what it is, and the step that it takes from the smoothed losses, with what that one's rate is divided by."""
DEFAULT_CRITERION = "minimum"


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """Attributes:
    rates: `train.learning_rate` of each step that was made, ascending.
    losses: training loss of the step's batch before its update, in nats per token.
    smoothed: their running mean.
    suggestions: the rate that each criterion suggests.
    criterion: the one that counts.
    multiple: its suggestion as a multiple of the configured rate, by which all groups' rates are to be multiplied.
    settings: what to write into the configuration, by name.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestions: dict[str, float]
    criterion: str
    multiple: float
    settings: dict[str, float]

    @property
    def suggestion(self) -> float:
        """What the chosen criterion suggests."""
        return self.suggestions[self.criterion]

    def write(self, folder: Path) -> None:
        """Write learning_rate.json and learning_rate.png; all bytes follow from the figures alone."""
        record: dict[str, Any] = {
            "suggestion": self.suggestion,
            "suggestion_is": CRITERIA[self.criterion][0],
            "criterion": self.criterion,
            "suggestions": self.suggestions,
            "multiple": self.multiple,
            "settings": self.settings,
            "rates": self.rates,
            "losses": self.losses,
            "smoothed": self.smoothed,
        }
        (folder / f"{FILE_NAME}.json").write_text(json.dumps(record, indent=2) + "\n")
        plot_search(self, folder / f"{FILE_NAME}.png")


def find_rate(
    engine: Engine,
    batches: Iterable[Batch],
    first: float = 1e-3,
    last: float = 100.0,
    steps: int = 100,
    criterion: str = DEFAULT_CRITERION,
) -> RateSearch:
    """Sweep the rates of all groups from `first` to `last` times what they are now, and suggest one.

    It ends early when the loss diverges. Afterwards the engine's weights and optimiser are unusable: build
    another engine. Nothing is written; see `RateSearch.write`.

    Args:
        engine: fresh, its groups' rates at their peaks.
        batches: at least `steps` of them, this rank's.
        first, last: multiples of the peaks, in geometric progression from step to step.
        steps: of the whole sweep.
        criterion: of `CRITERIA`, the one that counts; what the others suggest is told too.

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
    return _search(engine.config, criterion, multiples, losses, smoothed)


def _loss(engine: Engine, batch: Batch) -> float:
    try:
        return engine.accumulate(batch)["train_loss"]
    except NonFiniteError:
        return math.nan


def _smooth(losses: list[float]) -> float:
    """Running mean of all losses so far: those that lie further back count less."""
    weights = [SMOOTHING**age for age in range(len(losses))]
    return math.fsum(w * loss for w, loss in zip(weights, reversed(losses), strict=True)) / math.fsum(weights)


def _search(
    config: TrainConfig, criterion: str, multiples: list[float], losses: list[float], smoothed: list[float]
) -> RateSearch:
    if len(losses) < LEAST_STEPS:
        rate = config.learning_rate * multiples[-1] if multiples else math.nan
        raise AvaError(
            f"learning-rate search: ended after {len(losses)} steps at train.learning_rate = {rate:g}: needs"
            f" {LEAST_STEPS} before the loss diverges: lower train.learning_rate"
        )
    suggested = {}
    for name, (_, choose) in CRITERIA.items():
        step, divisor = choose(smoothed)
        suggested[name] = multiples[step] / divisor
    multiple = suggested[criterion]
    settings = {"train.learning_rate": config.learning_rate * multiple}
    if config.optimizer == "muon":
        settings["train.adam_learning_rate"] = config.adam_learning_rate * multiple
    return RateSearch(
        rates=[config.learning_rate * m for m in multiples],
        losses=losses,
        smoothed=smoothed,
        suggestions={name: config.learning_rate * m for name, m in suggested.items()},
        criterion=criterion,
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
    for number, (name, rate) in enumerate(search.suggestions.items()):
        chosen = name == search.criterion
        color = "black" if chosen else f"C{number + 2}"
        axes.axvline(rate, linestyle="--", color=color, linewidth=1.5 if chosen else 1, label=f"{name} {rate:.2g}")
    axes.set(xscale="log", xlabel="train.learning_rate", ylabel="nats per token", title="Learning-rate search")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
