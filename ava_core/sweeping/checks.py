"""The space against the configuration, before any work: every key, every value, both ends of ranges."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from ava_core.config import AvaConfig, Resolved, resolve
from ava_core.config.faults import unknown_keys
from ava_core.config.layers import nested, overlay
from ava_core.errors import ConfigError, shorten
from ava_core.sweeping.metrics import Plan, find_metric, plan
from ava_core.sweeping.space import DEFAULT_TRIALS, MAX_GRID, SweepSpace

MAX_PARTNERS = 64
"""Combinations with other keys' values in which a value that the rest of the configuration refuses is tried."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """The configuration that trials vary.

    Attributes:
        params, configs, overrides: what --params, --config and --set name.
        space: the sweep's file, which messages name for the values of its parameters.
    """

    params: Path | None
    configs: tuple[Path, ...]
    overrides: tuple[str, ...]
    space: Path

    def resolve(self, values: Mapping[str, Any] | None = None) -> Resolved:
        """The configuration with these values, by dotted key, over all layers.

        Raises:
            ConfigError: it refuses them.
        """
        above = (str(self.space), values) if values else None
        return resolve(params=self.params, config_files=self.configs, overrides=self.overrides, above_all=above)

    def overlay(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a file for --config has to say to make a trial of the same params.yaml."""
        return overlay(self.configs, self.overrides, values)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A space that fits the configuration.

    Attributes:
        space: the file.
        plan: the steps of a trial.
        whole: which keys take whole numbers.
        points: of a grid, all of it; empty otherwise.
        trials: how many there are to be.
    """

    space: SweepSpace
    plan: Plan
    whole: dict[str, bool]
    points: list[dict[str, Any]]
    trials: int


def check(space: SweepSpace, base: Base, trials: int | None = None) -> Checked:
    """Hold the space against the configuration.

    Args:
        space: the file.
        base: the configuration.
        trials: instead of the file's.

    Raises:
        ConfigError: a key that doesn't exist or that no step reads, a value that is refused, a figure that no step
            gives, a grid that is too large; or the configuration itself is refused.
    """
    _require_known(space, base)
    config = base.resolve().config
    if config.train.launcher == "trainjob":
        raise ConfigError("train.launcher = trainjob: a sweep trains on this machine: use local, or --via katib")
    if space.pruner and (config.train.init is not None or "train.init" in space.parameters):
        raise ConfigError(f"{base.space}: pruner: doesn't follow a training with train.init yet: leave one of them out")
    if space.pruner and (config.train.teacher.model is not None or "train.teacher.model" in space.parameters):
        raise ConfigError(f"{base.space}: pruner: doesn't follow a training with a teacher yet: leave one of them out")
    steps = plan([find_metric(goal.name, str(base.space)) for goal in space.goals], list(space.parameters))
    for key in space.parameters:
        if key.split(".")[0] not in steps.sections:
            raise ConfigError(f"{base.space}: parameters.{key}: no step of this sweep reads it")
    whole = {key: takes_whole_numbers(key) for key in space.parameters}
    for key, parameter in space.parameters.items():
        ends = (parameter.min, parameter.max, parameter.step)
        if whole[key] and any(end is not None and end != int(end) for end in ends):
            raise ConfigError(f"{base.space}: parameters.{key}: takes whole numbers: min, max and step must be such")
    if space.method == "grid":
        return Checked(space=space, plan=steps, whole=whole, **_check_grid(space, base, whole, trials or space.trials))
    _check_values(space, base, whole)
    return Checked(space=space, plan=steps, whole=whole, points=[], trials=trials or space.trials or DEFAULT_TRIALS)


def takes_whole_numbers(key: str) -> bool:
    """Whether a key of the configuration is an integer."""
    section: type[BaseModel] = AvaConfig
    annotation: Any = None
    for part in key.split("."):
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        if part not in fields:  # below a mapping whose keys are the user's
            return False
        annotation = fields[part].annotation
        section = next((kind for kind in _kinds(annotation) if issubclass(kind, BaseModel)), _NoSection)
    kinds = set(_kinds(annotation))
    return int in kinds and float not in kinds


class _NoSection(BaseModel):
    """A section without keys."""


def _kinds(annotation: Any) -> Iterator[type]:
    """The types that an annotation is made of, through unions, `Annotated` and literals."""
    if isinstance(annotation, type):
        yield annotation
    for inner in get_args(annotation):
        if isinstance(inner, int | str) and not isinstance(inner, bool | type):
            yield type(inner)
        else:
            yield from _kinds(inner)


def _require_known(space: SweepSpace, base: Base) -> None:
    faults = list(unknown_keys(f"{base.space}: parameters", nested(dict.fromkeys(space.parameters))))
    # A section itself may be a key, with mappings for values.
    faults = [fault for fault in faults if not fault.endswith("= null") and "must be a section" not in fault]
    if faults:
        raise ConfigError(*faults)


def _check_grid(space: SweepSpace, base: Base, whole: Mapping[str, bool], trials: int | None) -> dict[str, Any]:
    sizes = {key: len(parameter.grid(whole[key])) for key, parameter in space.parameters.items()}
    size = 1
    for count in sizes.values():
        size *= count
    if size > MAX_GRID or (trials is not None and size > trials):
        product = " x ".join(map(str, sizes.values()))
        bound = f"trials = {trials}" if trials is not None and size > trials else f"at most {MAX_GRID:,}"
        raise ConfigError(
            f"{base.space}: parameters: a grid of {product} = {size:,} points, but {bound}: take fewer"
            " values, or method: random"
        )
    points = list(space.points(whole))
    for point in points:
        _require_accepted(base, point)
    if space.pruner:
        # In order, as of rising rates, each trial might be better than all before it, and none would be pruned.
        random.Random(space.seed).shuffle(points)  # noqa: S311  no secret
    return {"points": points, "trials": size}


def _check_values(space: SweepSpace, base: Base, whole: Mapping[str, bool]) -> None:
    """Every value of a list and both ends of a range: by itself, or else with some values of the other keys."""
    axes = {key: _ends(space, key, whole[key]) for key in space.parameters}
    for key, values in axes.items():
        for value in values:
            try:
                base.resolve({key: value})
            except ConfigError as alone:
                others = [other for other in axes if other != key]
                partners = itertools.product(*(axes[other] for other in others))
                if not any(
                    _is_accepted(base, {key: value, **dict(zip(others, partner, strict=True))})
                    for partner in itertools.islice(partners, MAX_PARTNERS if others else 0)
                ):
                    raise alone


def _ends(space: SweepSpace, key: str, whole: bool) -> Sequence[Any]:
    parameter = space.parameters[key]
    if parameter.values is not None:
        return parameter.values
    return [int(end) if whole else float(end) for end in (parameter.min, parameter.max)]  # type: ignore[arg-type]


def _is_accepted(base: Base, values: Mapping[str, Any]) -> bool:
    try:
        base.resolve(values)
    except ConfigError:
        return False
    return True


def _require_accepted(base: Base, point: Mapping[str, Any]) -> None:
    try:
        base.resolve(point)
    except ConfigError as error:
        settings = ", ".join(f"{key} = {value}" for key, value in point.items())
        raise ConfigError(*(f"{fault} (in {shorten(settings)})" for fault in error.faults)) from error
