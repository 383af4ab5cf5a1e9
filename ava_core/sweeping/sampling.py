"""What a trial's settings are, as a function of the sweep's seed, the trial's number and what earlier trials gave.

Optuna's samplers draw from one stream of random numbers, which a sweep that goes on begins anew: it would try the same
settings again. Here each trial, and each of its keys, has a stream of its own. So grid and random give the same trials
whoever runs them and in whatever order; tpe does with one worker, however often that was killed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, create_study
from optuna.trial import FrozenTrial

from ava_core.sweeping.checks import Checked
from ava_core.sweeping.space import SweepSpace, tidy

_JSON = "json:"
"""How a choice begins that Optuna's storage can't hold as it is: a list or a mapping."""


def distributions(checked: Checked) -> dict[str, BaseDistribution]:
    """What Optuna chooses from, by key."""
    found: dict[str, BaseDistribution] = {}
    for key, parameter in checked.space.parameters.items():
        whole = checked.whole[key]
        if checked.space.method == "grid" or parameter.values is not None:
            found[key] = CategoricalDistribution([_encoded(value) for value in parameter.grid(whole)])
            continue
        low, high, log = parameter.min, parameter.max, parameter.scale == "log"
        if whole:
            found[key] = IntDistribution(int(low), int(high), log=log, step=int(parameter.step or 1))  # type: ignore[arg-type]
        else:
            found[key] = FloatDistribution(float(low), float(high), log=log, step=parameter.step)  # type: ignore[arg-type]
    return found


def settings_of(chosen: dict[str, Any], checked: Checked) -> dict[str, Any]:
    """The values of the configuration that a trial's choices stand for, in the order of the space."""
    settings = {}
    for key in checked.space.parameters:
        value = chosen[key]
        if isinstance(value, str) and value.startswith(_JSON):
            value = json.loads(value.removeprefix(_JSON))
        elif isinstance(value, float) and checked.space.parameters[key].values is None:
            value = tidy(value, whole=False)
        settings[key] = value
    return settings


def chosen_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The choices that `settings_of` reads as these settings."""
    return {key: _encoded(value) for key, value in settings.items()}


def _encoded(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain and not str(value).startswith(_JSON) else _JSON + json.dumps(value)


class NumberedSampler(BaseSampler):
    """Chooses by the trial's number.

    Args:
        checked: the space.
    """

    def __init__(self, checked: Checked) -> None:
        self.space: SweepSpace = checked.space
        self.points = [chosen_of(point) for point in checked.points]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self.points:
            return self.points[trial.number][param_name]
        sampler = self._sampler(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _sampler(self, trial: FrozenTrial, key: str = "") -> BaseSampler:
        seed = _seed(self.space.seed, trial.number, key)
        if self.space.method == "tpe":
            return TPESampler(seed=seed, n_startup_trials=self.space.startup_trials, multivariate=True)
        return RandomSampler(seed=seed)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big")


def pruner_of(space: SweepSpace) -> BasePruner:
    """Optuna's pruner for the file's."""
    if space.pruner and space.pruner.asha:
        asha = space.pruner.asha
        return SuccessiveHalvingPruner(min_resource=asha.min_steps, reduction_factor=asha.reduction_factor)
    if space.pruner and space.pruner.median:
        median = space.pruner.median
        return MedianPruner(n_startup_trials=median.startup_trials, n_warmup_steps=median.min_steps)
    return NopPruner()


def directions_of(space: SweepSpace) -> list[Literal["minimize", "maximize"]]:
    """Optuna's directions of the objectives."""
    return [goal.goal for goal in space.goals]


def random_settings(checked: Checked) -> Iterator[dict[str, Any]]:
    """The settings of all trials of the method random, without a storage: the same as a worker would give them."""
    quieten()
    study = create_study(sampler=NumberedSampler(checked))
    for _ in range(checked.trials):
        trial = study.ask(distributions(checked))
        yield settings_of(trial.params, checked)


def quieten() -> None:
    """Let Optuna say nothing but errors."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Heartbeats outside of Study.optimize and choices that are no scalars: both are meant.
    warnings.filterwarnings("ignore", module=r"optuna.*")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
