"""The file of a sweep: what is varied, what is measured, how trials are chosen.

    method: tpe                     # grid, random, tpe
    metric: {name: validation_bits_per_byte, goal: minimize}
    parameters:
      train.learning_rate: {min: 0.003, max: 0.03, scale: log}
      model.router: {values: [top_k, expert_bias]}
    trials: 16
    pruner: {asha: {min_steps: 100, reduction_factor: 3}}
    seed: 0

The keys are those that users of W&B and Katib know; keys of `parameters` are dotted keys of the configuration.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ava_core.config.faults import explain
from ava_core.config.section import LARGEST, NonNegative, Positive, Section
from ava_core.config.yaml_text import MAX_BYTES, YamlError, read_yaml
from ava_core.errors import ConfigError, shorten

MAX_GRID = 1000
"""Points of a grid, all of which are validated before the first trial."""
DEFAULT_TRIALS = 20
Number = Annotated[float, Field(ge=-1e18, le=1e18)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class ObjectiveConfig(Section):
    """A figure that the sweep looks for the best of."""

    name: Annotated[str, Field(min_length=1)]
    """As in metrics.json or OUTPUT.timings.json of a step; those of a quantised model begin with its scheme: int8_."""
    goal: Literal["minimize", "maximize"] = "minimize"
    """Which direction is good."""


class ParameterConfig(Section):
    """What a key of the configuration may be: a list of values, or a range."""

    values: Annotated[list[Any], Field(min_length=1)] | None = None
    """The values, of any type that the key takes."""
    min: int | Number | None = None
    """Lower end, included."""
    max: int | Number | None = None
    """Upper end, included."""
    scale: Literal["linear", "log"] = "linear"
    """log: every order of magnitude counts the same."""
    step: Annotated[float, Field(gt=0.0)] | None = None
    """Only the lower end plus multiples of this."""
    count: Annotated[int, Field(ge=2, le=MAX_GRID)] | None = None
    """Of a grid: so many values at equal distances on the scale, both ends included."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> ParameterConfig:
        ranged = [name for name in ("min", "max", "step", "count") if getattr(self, name) is not None]
        if self.values is not None:
            if ranged:
                raise ValueError(f"{ranged[0]} = {getattr(self, ranged[0])}: stands beside values: give one of them")
            texts = [json.dumps(value, sort_keys=True, default=str) for value in self.values]
            if twice := next((text for text in texts if texts.count(text) > 1), None):
                raise ValueError(f"values = {shorten(', '.join(texts))}: {shorten(twice)} stands there twice")
            return self
        if self.min is None or self.max is None:
            raise ValueError("must have values: [...], or min and max")
        if self.min >= self.max:
            raise ValueError(f"min = {self.min}: must be < max = {self.max}")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"min = {self.min}: must be > 0 on the scale log")
        if self.step is not None and (self.scale == "log" or self.count is not None):
            raise ValueError(f"step = {self.step:g}: only for the scale linear, and without count")
        return self

    def grid(self, whole: bool) -> list[Any]:
        """The values of a grid.

        Args:
            whole: the key takes whole numbers.
        """
        if self.values is not None:
            return list(self.values)
        low, high = float(self.min), float(self.max)  # type: ignore[arg-type]
        if self.step is not None:
            found = [low + index * self.step for index in range(int((high - low) / self.step + 1e-9) + 1)]
        else:
            count = self.count or 2
            shares = [index / (count - 1) for index in range(count)]
            if self.scale == "log":
                found = [math.exp(math.log(low) + share * (math.log(high) - math.log(low))) for share in shares]
            else:
                found = [low + share * (high - low) for share in shares]
            found[0], found[-1] = low, high
        return list(dict.fromkeys(tidy(value, whole) for value in found))


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934): only the best go on from rung to rung."""

    min_steps: Positive
    """Training steps of the first rung; the next has `reduction_factor` times as many."""
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    """One of so many goes on."""


class MedianConfig(Section):
    """Ends a trial whose best figure so far is worse than the median of the earlier trials at the same step."""

    min_steps: NonNegative = 0
    """Training steps in which no trial is ended."""
    startup_trials: Positive = 5
    """Trials that have to be complete before one is ended."""


class PrunerConfig(Section):
    """How trials that don't promise anything are ended early; by their figure on the validation split."""

    asha: AshaConfig | None = None
    median: MedianConfig | None = None

    @model_validator(mode="after")
    def _is_one(self) -> PrunerConfig:
        if (self.asha is None) == (self.median is None):
            raise ValueError("must have one of asha, median")
        return self


class SweepSpace(Section):
    """The whole file."""

    name: Name | None = None
    """Of the sweep in its storage; null: that of the file, without its ending."""
    method: Literal["grid", "random", "tpe"] = "tpe"
    """grid: all combinations, in their order, or shuffled where a pruner compares each with those before it; tpe:
    tree-structured Parzen estimator (Bergstra et al., 2011)."""
    metric: ObjectiveConfig | None = None
    """The figure, where there is one."""
    objectives: list[ObjectiveConfig] = []
    """The figures, where there are several: the result is a Pareto front."""
    parameters: dict[str, ParameterConfig] = {}
    """Dotted key of the configuration -> what it may be."""
    trials: Annotated[int, Field(gt=0, le=100_000)] | None = None
    """How many; null: the whole grid, 20 of the others."""
    pruner: PrunerConfig | None = None
    """Ends trials early; null: none."""
    seed: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """With it and one worker, the same trials come in the same order."""
    startup_trials: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Random trials before tpe begins to choose."""

    @model_validator(mode="after")
    def _has_a_goal_and_a_space(self) -> SweepSpace:
        if (self.metric is None) == (not self.objectives):
            raise ValueError("must have a metric: {name: ..., goal: minimize}, or objectives: a list of such")
        names = [objective.name for objective in self.goals]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives = {', '.join(names)}: a figure stands there twice")
        if not self.parameters:
            raise ValueError("parameters = {}: an empty space: name at least one key of the configuration")
        if self.pruner and len(names) > 1:
            raise ValueError("pruner: goes by one figure: leave it out, or give one metric")
        for key, parameter in self.parameters.items():
            inside = next((other for other in self.parameters if other.startswith(f"{key}.")), None)
            if inside:
                raise ValueError(f"parameters: {inside} lies in {key}: vary one of them")
            ranged = parameter.values is None
            if self.method == "grid" and ranged and parameter.step is None and parameter.count is None:
                raise ValueError(f"parameters: {key}: a range in a grid needs step or count")
            if self.method != "grid" and parameter.count is not None:
                raise ValueError(f"parameters: {key}: count = {parameter.count}: only for the method grid")
        return self

    @property
    def goals(self) -> list[ObjectiveConfig]:
        """The figures, also if it is one."""
        return [self.metric] if self.metric else self.objectives

    def points(self, whole: Mapping[str, bool]) -> Iterator[dict[str, Any]]:
        """All points of a grid, the last key varying fastest.

        Args:
            whole: which keys take whole numbers.
        """
        axes = [parameter.grid(whole[key]) for key, parameter in self.parameters.items()]
        return (dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*axes))


def tidy(value: float, whole: bool) -> Any:
    """A number with six digits, as a person would write it; settings are what is shown."""
    return round(value) if whole else float(f"{value:.6g}")


def read_space(path: Path) -> SweepSpace:
    """Read and validate the file of a sweep.

    Raises:
        ConfigError: one line per fault, naming the file, the key, its value and what is allowed.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
        values = read_yaml(text)
    except FileNotFoundError as error:
        raise ConfigError(f"--space {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no mapping of keys to values")
    try:
        return SweepSpace.model_validate(values)
    except ValidationError as error:
        # To `explain`, a fault is a layer's and a key's; there is one layer here.
        origins = {str(key): str(path) for key in values} | {"": str(path)}
        faults = (explain(item, origins, SweepSpace) for item in error.errors(include_url=False))
        raise ConfigError(*dict.fromkeys(_named(fault, path) for fault in faults)) from error


def _named(fault: str, path: Path) -> str:
    return fault.replace("default: ", f"{path}: ", 1) if fault.startswith("default: ") else fault
