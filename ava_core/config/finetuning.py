"""What the sections of trainings after pretraining have in common: they train as `train` says but for what they set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from ava_core.config.rewards import RewardEntry, RewardList
from ava_core.config.section import LearningRate, NonNegative, Positive
from ava_core.config.train import TrainConfig

RATES = ("learning_rate", "adam_learning_rate")
OWN = {
    "init": "the model to begin from comes with --model",
    "init_schedule": "the schedule begins anew",
    "keep_optimizer": "the optimiser's state is that of another loss",
    "reset_optimizer": "there is no checkpoint of another training to begin from",
    "teacher": "distillation is of pretraining",
    "curriculum": "what is trained on comes in a drawn order",
    "tasks_every": "benchmarks are made from the shards of a pretraining: `ava evaluate` runs them",
}
"""Fields of `train` that these sections neither take over nor may set, and why."""
LEFT_OUT = {*OWN, "steps", "warmup_steps", "evaluate_every", "checkpoint_every", "freeze", "adapter", "ema", "tasks"}
"""Fields whose value in `train` says nothing of a training after it."""


class FineTuning(TrainConfig):
    """A training that begins from a model. A key that isn't set is that of `train`; the rates are a share of its."""

    begins_from_model: ClassVar[bool] = True
    rate_share: ClassVar[float] = 0.2
    """Rates as a share of those that the model was trained with: it is to learn, and to forget little."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Further fields of `train` that may not be set, and why."""

    steps: Positive = 200
    warmup_steps: NonNegative = 10
    evaluate_every: Positive = 50
    learning_rate: LearningRate = rate_share * TrainConfig.model_fields["learning_rate"].default
    adam_learning_rate: LearningRate = rate_share * TrainConfig.model_fields["adam_learning_rate"].default

    @model_validator(mode="after")
    def _is_a_fine_tuning(self) -> FineTuning:
        for name, reason in {**OWN, **self.refused}.items():
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name}: {reason}: leave it out")
        return self

    @classmethod
    def inherited(cls, train: Any) -> dict[str, Any]:
        """What the section takes over from the values of `train`; nothing of what is no section."""
        if not isinstance(train, Mapping):
            return {}
        values = {name: value for name, value in train.items() if name not in {*LEFT_OUT, *cls.refused}}
        for name in RATES:
            if isinstance(rate := values.get(name), int | float) and not isinstance(rate, bool):
                values[name] = cls.rate_share * rate
        return values


class AnsweringFineTuning(FineTuning):
    """A training whose model answers prompts, and is compared by its answers with the one that it began from."""

    samples: NonNegative = 32
    """Held-out prompts that start and finished model answer: how long, how repetitive, how far from the start."""
    rewards: RewardList = [RewardEntry(name="speech")]
    """What those answers are worth, the model's, the start's and the data's own: built-in rewards or your functions."""
