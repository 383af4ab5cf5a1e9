"""The section `grpo`: what a model learns from rewards of its own answers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ava_core.config.finetuning import AnsweringFineTuning
from ava_core.config.section import LARGEST, LearningRate, Positive, PositiveNumber, Weight
from ava_core.config.train import TrainConfig

GRPO_RATE_SHARE = 0.02


class GrpoConfig(AnsweringFineTuning):
    """Group-relative policy optimisation (arXiv 2402.03300). A key that isn't set is that of `train`; the rates are a
    fiftieth of its. `rewards` is what is learnt from."""

    rate_share: ClassVar[float] = GRPO_RATE_SHARE
    refused: ClassVar = {"loss": "the loss is of rewarded answers"}

    steps: Positive = 100
    evaluate_every: Positive = 25
    learning_rate: LearningRate = GRPO_RATE_SHARE * TrainConfig.model_fields["learning_rate"].default
    adam_learning_rate: LearningRate = GRPO_RATE_SHARE * TrainConfig.model_fields["adam_learning_rate"].default
    group_size: Annotated[int, Field(ge=2, le=LARGEST)] = 8
    """Answers to one prompt, which are compared with each other; `global_batch_size` is all answers of a step."""
    max_new_tokens: Positive = 64
    """Longest answer in tokens."""
    temperature: PositiveNumber = 1.0
    """Of the answers that are learnt from."""
    scale: Literal["group", "none"] = "group"
    """What a reward's distance from its group's mean is divided by: the group's standard deviation, or nothing (arXiv
    2503.20783)."""
    clip: PositiveNumber = 0.2
    """How far the ratio of a token's probabilities, now and when it was sampled, may leave 1 before it counts no
    more."""
    beta: Weight = 0.02
    """Weight of the divergence from the model that the training began from, per token (the estimator k3)."""
    rollout: Literal["generate", "onnx"] = "generate"
    """Who answers: `generate`, the model itself; `onnx`, Ava's decoder with the present weights rounded to int8 at each
    step, several times as fast, and corrected for by the weight of each token."""
    importance_cap: PositiveNumber = 2.0
    """Largest weight of a token, its probability by the model over that by the rounded one, for rollout = onnx."""
    replay: bool = True
    """Learn with the experts that each token took when it was sampled (arXiv 2510.11370)."""
