"""Several rewards of the same answers, and their weighted mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ava_core.alignment.rewards.answer import Answer, Reward
from ava_core.alignment.rewards.functions import find_reward
from ava_core.config.rewards import RewardEntry
from ava_core.errors import AvaError, shorten, typed_line

WAY_OUT = "mend the function, or take it out of `rewards`"


@dataclass(frozen=True, slots=True)
class Scores:
    """What a batch of answers is worth.

    Attributes:
        parts: by a reward's label, its value for each answer.
        total: for each answer the weighted mean of its parts.
    """

    parts: dict[str, tuple[float, ...]]
    total: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A reward of a set."""

    label: str
    function: Reward
    weight: float


@dataclass(frozen=True, slots=True)
class RewardSet:
    """Rewards that are computed together; at least one has a weight."""

    rewards: tuple[WeightedReward, ...]

    @classmethod
    def from_config(cls, entries: Sequence[RewardEntry]) -> RewardSet:
        """The rewards of a list that the configuration has checked (`RewardList`); users' modules are imported.

        Raises:
            ConfigError: a function can't be imported, or isn't callable.
        """
        return cls(tuple(WeightedReward(entry.label, find_reward(entry), entry.weight) for entry in entries))

    def score(self, answers: Sequence[Answer]) -> Scores:
        """Each reward of each answer, and their weighted means.

        Raises:
            AvaError: a reward raises, or gives something else than one finite number for each answer.
        """
        parts = {reward.label: _values(reward, answers) for reward in self.rewards}
        whole = math.fsum(reward.weight for reward in self.rewards)
        weights = [reward.weight / whole for reward in self.rewards]
        total = tuple(
            math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
            for values in zip(*parts.values(), strict=True)
        )
        return Scores(parts, total)


def _values(reward: WeightedReward, answers: Sequence[Answer]) -> tuple[float, ...]:
    """What a reward gives, each value looked at."""
    try:
        given: Any = reward.function(answers)
    except AvaError:
        raise
    except Exception as error:
        raise AvaError(f"reward {reward.label}: raises {typed_line(error)}: {WAY_OUT}") from error
    try:
        values = list(given)
    except TypeError:
        raise AvaError(
            f"reward {reward.label}: gives {type(given).__name__}, no sequence of numbers: it gets all answers at once"
            " and must give one number for each"
        ) from None
    if len(values) != len(answers):
        raise AvaError(
            f"reward {reward.label}: gives {len(values)} values for {len(answers)} answers: it must give one for each,"
            " in their order"
        )
    return tuple(_number(reward.label, position, value) for position, value in enumerate(values, start=1))


def _number(label: str, position: int, value: Any) -> float:
    """A value as a float; elements of arrays and tensors count as what they hold."""
    held = value.item() if callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0 else value
    if not isinstance(held, Real):
        raise AvaError(
            f"reward {label}: value {position} = {shorten(repr(value))}: is {type(value).__name__}, not a number:"
            f" {WAY_OUT}"
        )
    number = float(held)
    if not math.isfinite(number):
        raise AvaError(f"reward {label}: value {position} = {number}: must be finite: {WAY_OUT}")
    return number
