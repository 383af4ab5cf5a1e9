"""The section `sft`: supervised fine-tuning on conversations, which trains as `train` says but for what is set here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from ava_core.config.section import LearningRate, NonNegative, Positive
from ava_core.config.train import TrainConfig

RATE_SHARE = 0.2
"""Rates of a fine-tuning as a share of those that the model was trained with: it is to learn, and to forget little."""
RATES = ("learning_rate", "adam_learning_rate")
OWN = {
    "init": "the model to begin from comes with --model",
    "init_schedule": "the schedule of a fine-tuning begins anew",
    "reset_optimizer": "a fine-tuning has no checkpoint of another training to begin from",
    "teacher": "distillation is of pretraining",
    "curriculum": "conversations come in a drawn order",
    "tasks_every": "benchmarks are made from the shards of a pretraining: `ava evaluate` runs them",
}
"""Fields of `train` that `sft` neither takes over nor may set, and why."""
LEFT_OUT = {*OWN, "steps", "warmup_steps", "evaluate_every", "checkpoint_every", "freeze", "adapter", "ema", "tasks"}
"""Fields whose value in `train` says nothing of a fine-tuning."""


class SftConfig(TrainConfig):
    """Supervised fine-tuning. A key that isn't set is that of `train`; the rates are a fifth of its."""

    steps: Positive = 200
    warmup_steps: NonNegative = 10
    evaluate_every: Positive = 50
    learning_rate: LearningRate = RATE_SHARE * TrainConfig.model_fields["learning_rate"].default
    adam_learning_rate: LearningRate = RATE_SHARE * TrainConfig.model_fields["adam_learning_rate"].default
    samples: NonNegative = 32
    """Held-out prompts that the finished model answers, to count the answers that end by themselves."""

    @model_validator(mode="after")
    def _is_a_fine_tuning(self) -> SftConfig:
        for name, reason in OWN.items():
            if getattr(self, name) != SftConfig.model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name}: {reason}: leave it out")
        return self


def inherited(train: Any) -> dict[str, Any]:
    """What the section `sft` takes over from the values of `train`; nothing of what is no section."""
    if not isinstance(train, Mapping):
        return {}
    values = {name: value for name, value in train.items() if name not in LEFT_OUT}
    for name in RATES:
        if isinstance(rate := values.get(name), int | float) and not isinstance(rate, bool):
            values[name] = RATE_SHARE * rate
    return values
